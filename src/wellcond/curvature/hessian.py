"""The Hessian of a problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wellcond.curvature.gauss_newton import GaussNewton
from wellcond.curvature.jacobian import pulled
from wellcond.curvature.operator import CurvatureOperator
from wellcond.problem import check_depends


class _Graph(NamedTuple):
    """One batch's gradient, to be differentiated again."""

    leaves: list[Tensor]
    outputs: Sequence[Tensor]  # the gradient of the loss, by the leaves


class Hessian(CurvatureOperator):
    """H = ∇²L(p), by a backward pass through the gradient's own graph (Pearlmutter 1994).

    A product costs about 2.5 gradients; about 1.5 inside `with problem:`, where the gradient's graph is kept.

    Args:
        problem: what is differentiated; read again at every product.
    """

    def semidefinite(self) -> CurvatureOperator | None:
        """The Gauss-Newton matrix of the same problem; None where the loss is not split into output and target."""
        if self.problem.loss_fn is None:
            return None
        stand_in = GaussNewton(self.problem).block(*self.parameters).damped(self.damping)
        return stand_in if stand_in.positive_semidefinite else None

    def batch_graph(self, index: int) -> _Graph:
        loss = self.problem.batch_loss(index)
        check_depends(loss)
        leaves = self._leaves()
        gradient = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        return _Graph(leaves, gradient)

    def batch_product(self, graph: _Graph, pieces: Sequence[Tensor], keep: bool) -> Sequence[Tensor]:
        # A parameter in which the loss is linear has a gradient without a graph: its row of H is zero.
        return pulled(graph.outputs, graph.leaves, pieces, keep)
