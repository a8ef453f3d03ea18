"""The generalized Gauss-Newton matrix of a problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wellcond.curvature.jacobian import Jacobian, pulled
from wellcond.curvature.of_output import OutputCurvature
from wellcond.curvature.places import Place


class _Graph(NamedTuple):
    """One batch's output and loss gradient, with the graphs to differentiate them by."""

    jacobian: Jacobian
    loss_input: Tensor  # the output, cut off from the network
    loss_gradient: Tensor  # ∇loss, as a function of loss_input
    alone: bool  # nothing of the user's runs in a product


class GaussNewton(OutputCurvature):
    """G = Jᵀ ∇²loss J, J the derivative of the network's output by its parameters (Schraudolph 2002).

    Positive semidefinite where the loss is convex in the output, as squared error and cross entropy are.

    Args:
        problem: with a `loss_fn(output, target)` whose output is one tensor.

    Raises:
        OutputUnknownError: where the loss is not split into output and target, or (on multiplying) where the output is
            not one tensor.
    """

    def _graph(self, index: int) -> _Graph:
        output = self._output(index)
        jacobian = Jacobian(output, self._leaves(), self._layers, self._layers.derivatives_alone(output))
        loss_input = output.detach().requires_grad_()
        with self._layers:
            loss = self.problem.batch_loss(index, loss_input)
        (loss_gradient,) = torch.autograd.grad(loss, loss_input, create_graph=True)
        return _Graph(jacobian, loss_input, loss_gradient, jacobian.alone and self._layers.derivatives_alone(loss))

    def _batch_product(self, places: Sequence[Place], graph: _Graph, pieces: Sequence[Tensor], keep: bool) -> None:
        pushed = graph.jacobian.push(pieces)
        (curved,) = pulled([graph.loss_gradient], [graph.loss_input], [pushed], keep)
        graph.jacobian.pull_into(places, curved, keep)
