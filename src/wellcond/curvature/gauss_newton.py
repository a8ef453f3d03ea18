"""The generalized Gauss-Newton matrix of a problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wellcond.curvature.jacobian import Jacobian, pulled
from wellcond.curvature.of_output import OutputCurvature


class _Graph(NamedTuple):
    """One batch's output and loss gradient, with the graphs to differentiate them by."""

    jacobian: Jacobian
    loss_input: Tensor  # the output, cut off from the network
    loss_gradient: Tensor  # ∇loss, as a function of loss_input

    @property
    def outputs(self) -> Sequence[Tensor]:
        return *self.jacobian.outputs, self.loss_gradient


class GaussNewton(OutputCurvature):
    """G = Jᵀ ∇²loss J, J the derivative of the network's output by its parameters (Schraudolph 2002).

    Positive semidefinite where the loss is convex in the output, as squared error and cross entropy are.

    Args:
        problem: with a `loss_fn(output, target)` whose output is one tensor.

    Raises:
        OutputUnknownError: where the loss is not split into output and target, or (on multiplying) where the output is
            not one tensor.
    """

    def batch_graph(self, index: int) -> _Graph:
        output = self._output(index)
        jacobian = Jacobian(output, self._leaves())
        loss_input = output.detach().requires_grad_()
        loss = self.problem.batch_loss(index, loss_input)
        (loss_gradient,) = torch.autograd.grad(loss, loss_input, create_graph=True)
        return _Graph(jacobian, loss_input, loss_gradient)

    def batch_product(self, graph: _Graph, pieces: Sequence[Tensor], keep: bool) -> Sequence[Tensor]:
        pushed = graph.jacobian.push(pieces)
        (curved,) = pulled([graph.loss_gradient], [graph.loss_input], [pushed], keep)
        return graph.jacobian.pull(curved, keep)
