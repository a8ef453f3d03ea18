"""A curvature seen through a change of variables p = Pz."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wellcond.linalg import SymmetricOperator
from wellcond.parameters import flatten, unflatten
from wellcond.preconditioners import Preconditioner

if TYPE_CHECKING:
    from wellcond.curvature.operator import CurvatureOperator


class Preconditioned(SymmetricOperator):
    """PᵀCP for a curvature operator C of a problem: what decides the speed of a preconditioned method.

    Args:
        curvature: C.
        P: over the problem's parameters, in any order.
    """

    def __init__(self, curvature: CurvatureOperator, P: Preconditioner):
        super().__init__(curvature.size, curvature.dtype, curvature.device)
        self.curvature = curvature
        self.P = P.over(curvature.parameters, curvature.names, curvature.dtype)
        self.positive_semidefinite = curvature.positive_semidefinite
        self.rounding = self.P.rounding

    def gradient(self) -> Tensor:
        """Pᵀ∇L, the gradient in z."""
        return self._through(self.P.adjoint, self.curvature.gradient())

    def semidefinite(self) -> SymmetricOperator | None:
        """PᵀGP where C has a positive semidefinite stand-in G."""
        stand_in = self.curvature.semidefinite()
        if stand_in is None:
            return None
        twin = self if stand_in is self.curvature else stand_in.preconditioned(self.P).damped(self.damping)
        return twin if twin.positive_semidefinite else None

    def keeping(self, products: int) -> contextlib.AbstractContextManager[object]:
        return self.curvature.keeping(products)

    def _multiply(self, v: Tensor) -> Tensor:
        return self._through(self.P.adjoint, self.curvature.matvec(self._through(self.P.apply, v)))

    def dense(self) -> Tensor:
        """PᵀCP, (n, n), from the dense C: P is applied to its rows and columns, without products beyond C's n."""
        spent = self.curvature.products
        half = self._adjoint_of(self.curvature.dense())
        self.products += self.curvature.products - spent
        return self._with_damping(self._adjoint_of(half.T).T)

    def _adjoint_of(self, matrix: Tensor) -> Tensor:
        return torch.stack([self._through(self.P.adjoint, column) for column in matrix.T], dim=1)

    def _through(self, change: Callable[[list[Tensor]], list[Tensor]], v: Tensor) -> Tensor:
        return flatten(change(unflatten(v, self.curvature.parameters)))
