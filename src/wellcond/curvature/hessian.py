"""The Hessian of a problem."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wellcond.curvature.gauss_newton import GaussNewton
from wellcond.curvature.jacobian import pulled
from wellcond.curvature.operator import CurvatureOperator


class Hessian(CurvatureOperator):
    """H = ∇²L(p), by a backward pass through the gradient's own graph (Pearlmutter 1994).

    A product costs about 2.5 gradients; about 1.5 inside `with problem:`, where the gradient's graph is kept.

    Args:
        problem: what is differentiated; read anew at every product.
    """

    def semidefinite(self) -> CurvatureOperator | None:
        """The Gauss-Newton matrix of the same problem; None where the loss is not split into output and target."""
        if self.problem.loss_fn is None:
            return None
        stand_in = GaussNewton(self.problem).damped(self.damping)
        if len(self.positions) < len(self.problem.parameters):
            stand_in = stand_in.block(*self.parameters)
        return stand_in if stand_in.positive_semidefinite else None

    def _graph(self, index: int) -> tuple[list[Tensor], Sequence[Tensor]]:
        """The leaves, and the gradient of one batch's loss by them, to be differentiated again."""
        with self._layers:
            loss = self.problem.batch_loss(index)
        self.problem.check_depends(loss)
        leaves = self._leaves()
        return leaves, self._bilinear.differentiable_gradient(loss, leaves)

    def _batch_product(
        self, graph: tuple[list[Tensor], Sequence[Tensor]], pieces: Sequence[Tensor], keep: bool
    ) -> tuple[Tensor, ...]:
        leaves, gradient = graph
        # A parameter in which the loss is linear has a gradient without a graph: its row of H is zero.
        return pulled(gradient, leaves, pieces, keep)
