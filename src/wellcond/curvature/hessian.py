"""The Hessian of a problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from wellcond.curvature.bilinear import BilinearLayers
from wellcond.curvature.gauss_newton import GaussNewton
from wellcond.curvature.jacobian import pull_into
from wellcond.curvature.operator import CurvatureOperator
from wellcond.curvature.places import Place


class _Graph(NamedTuple):
    """One batch's gradient, to be differentiated again."""

    leaves: list[Tensor]
    gradient: Sequence[Tensor]  # of the loss, by the leaves
    layers: BilinearLayers  # that the loss was evaluated inside of
    alone: bool  # nothing of the user's runs in a product


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

    def _graph(self, index: int) -> _Graph:
        with self._layers:
            loss = self.problem.batch_loss(index)
        self.problem.check_depends(loss)
        leaves, layers = self._leaves(), self._layers
        gradient = layers.differentiable_gradient(loss, leaves)
        return _Graph(leaves, gradient, layers, layers.derivatives_alone(loss))

    def _batch_product(self, places: Sequence[Place], graph: _Graph, pieces: Sequence[Tensor], keep: bool) -> None:
        # A parameter in which the loss is linear has a gradient without a graph: its row of H is zero.
        pull_into(places, graph.gradient, graph.leaves, pieces, keep, graph.layers if graph.alone else None)
