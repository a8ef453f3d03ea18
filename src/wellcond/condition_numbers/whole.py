"""The figures of a curvature whose eigenvalues are all computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from wellcond.condition_numbers.figures import Conditioning, check_symmetric, ratio
from wellcond.linalg import Estimate, SymmetricOperator, finite

HOW = "exact: all eigenvalues"


@dataclass(frozen=True, kw_only=True)
class WholeConditioning(Conditioning):
    """From all eigenvalues; what remains uncertain is rounding: |true − computed| ≤ rounding + relative·|λ|.

    Attributes:
        gradient_weights: (n,), the squared component of the operator's gradient along each eigenvector; None without.
        relative: rounding of the eigenvalues beside that of the products, relative to each.
        resolution: n·ε of the dtype: what is smaller relative to the largest eigenvalue counts as zero.
        cut: what an eigenvalue must exceed not to be zero to rounding.
    """

    spectrum: Tensor = field(repr=False)
    gradient_weights: Tensor | None = field(repr=False)
    relative: float = field(repr=False)
    resolution: float = field(repr=False)
    cut: float = field(repr=False)

    @classmethod
    def of(cls, operator: SymmetricOperator, gradient: Tensor | None = None, count: int = 0) -> WholeConditioning:
        """Form the matrix and take it apart; `count` eigenvalues are listed from each end.

        Raises:
            FloatingPointError: if the matrix is not finite, or not symmetric.
        """
        matrix = finite(operator.dense()).cpu().double()
        # How far the products were from symmetric measures their rounding; the rest is the eigensolver's.
        asymmetry = float(torch.linalg.matrix_norm(matrix - matrix.T)) / 2
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        n, top, scale, eps = len(values), float(values[-1]), float(values.abs().max()), torch.finfo(operator.dtype).eps
        check_symmetric(asymmetry, scale, operator.dtype)
        rounding, relative = asymmetry + 8 * math.sqrt(n) * eps * scale, 2 * operator.rounding
        cut = max(n * eps * top, rounding)
        theta = max(1e-6, cut / top) if top > 0 else 1e-6

        known = partial(_known, rounding=rounding, relative=relative)
        mean = float((values if operator.positive_semidefinite else values.abs()).mean())
        kappa_star = Estimate.undefined("no eigenvalue is above rounding")
        if top > cut:
            kappa_star = ratio(known(top), known(float(values[values > cut][0])), HOW)
        negative = Estimate.undefined("the largest eigenvalue is not positive")
        if top > 0:
            negative = Estimate.exactly((values < -theta * top).double().mean(), f"{HOW}; θ = {theta:.0e}")
        return cls(
            size=n,
            largest=known(top),
            smallest=known(float(values[0])),
            top=[known(x) for x in values.flip(0)[:count].tolist()],
            bottom=[known(x) for x in values[:count].tolist()],
            kappa_mean=ratio(known(top), known(mean), HOW),
            kappa_star=kappa_star,
            negative_fraction=negative,
            theta=theta,
            spectrum=values,
            products=n,
            rounding=rounding,
            squared_rows=matrix.square().sum(1)[None],
            gradient_weights=None if gradient is None else (vectors.T @ gradient.cpu().double()).square(),
            relative=relative,
            resolution=n * eps,
            cut=cut,
        )

    def _kappa(self, fraction: float) -> Estimate:
        kept = self.spectrum[self.spectrum > self.theta * self.largest.value].flip(0)
        if not len(kept):
            return Estimate.undefined("no eigenvalue is positive")
        x = float(kept[math.ceil(fraction * len(kept) - 1e-9) - 1])
        return ratio(self.largest, _known(x, self.rounding, self.relative), f"{HOW}; θ = {self.theta:.0e}")

    def _fraction_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        exact = (self.spectrum >= x[:, None]).double().mean(1)
        return exact, exact


def _known(x: float, rounding: float, relative: float) -> Estimate:
    error = rounding + relative * abs(x)
    return Estimate(x, x - error, x + error, HOW)
