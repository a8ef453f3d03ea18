"""The generalized Gauss-Newton matrix of a problem."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wellcond.curvature.operator import CurvatureOperator
from wellcond.problem import Problem


class OutputUnknownError(ValueError):
    """The problem does not say what its network's output is, as one tensor."""


class _Graph(NamedTuple):
    """One batch's output and loss gradient, with the graphs to differentiate them by."""

    leaves: list[Tensor]
    output: Tensor
    cotangent: Tensor  # u, a placeholder
    pulled: list[Tensor]  # Jᵀu, linear in u
    loss_input: Tensor  # the output, cut off from the network
    loss_gradient: Tensor  # ∇loss, as a function of loss_input


class GaussNewton(CurvatureOperator):
    """G = Jᵀ ∇²loss J, J the derivative of the network's output by its parameters (Schraudolph 2002).

    Positive semidefinite where the loss is convex in the output, as squared error and cross entropy are.

    Args:
        problem: with a `loss_fn(output, target)` whose output is one tensor.

    Raises:
        OutputUnknownError: where the loss is not split into output and target, or (on multiplying) where the output is
            not one tensor.
    """

    positive_semidefinite = True

    def __init__(self, problem: Problem):
        if problem.loss_fn is None:
            raise OutputUnknownError("they need loss_fn(output, target); loss=callable(model, batch) hides the output")
        super().__init__(problem)

    def _graph(self, index: int) -> _Graph:
        output, leaves = self.problem.batch_output(index), self.problem.leaves
        if not isinstance(output, Tensor):
            raise OutputUnknownError(f"they need an output that is one tensor, not a {type(output).__name__}")
        self.problem.check_depends(output)
        # J v comes from differentiating u ↦ Jᵀu, which is linear in u: no forward mode needed.
        cotangent = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(
            output, leaves, cotangent, create_graph=True, allow_unused=True, materialize_grads=True
        )
        loss_input = output.detach().requires_grad_()
        loss = self.problem.batch_loss(index, loss_input)
        (loss_gradient,) = torch.autograd.grad(loss, loss_input, create_graph=True)
        return _Graph(leaves, output, cotangent, list(pulled), loss_input, loss_gradient)

    def _batch_product(self, graph: _Graph, pieces: list[Tensor], keep: bool) -> tuple[Tensor, ...]:
        used = [(g, v) for g, v in zip(graph.pulled, pieces, strict=True) if g.requires_grad]
        (pushed,) = torch.autograd.grad(
            [g for g, _ in used],
            graph.cotangent,
            [v for _, v in used],
            retain_graph=True,
            materialize_grads=True,
        )
        curved = torch.zeros_like(pushed)
        if graph.loss_gradient.requires_grad:
            (curved,) = torch.autograd.grad(
                graph.loss_gradient, graph.loss_input, pushed, retain_graph=keep, materialize_grads=True
            )
        return torch.autograd.grad(
            graph.output, graph.leaves, curved, retain_graph=keep, allow_unused=True, materialize_grads=True
        )
