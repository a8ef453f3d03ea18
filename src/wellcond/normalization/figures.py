"""κ of the extended hidden matrix under each normalization, from the moments of its columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wellcond.linalg import Estimate
from wellcond.normalization.moments import Moments


@dataclass(frozen=True)
class Figures:
    """Ĥ/√N under diagonal scalings, with and without its mean.

    MᵀM = ĤᵀĤ/N for M = [[1, μᵀ], [0, F]], FᵀF the covariance: M has the singular values of Ĥ/√N.

    Args:
        moments: of H.
        bias: whether Ĥ has a column of ones.
        rounding: to which the entries of H are known, relative to the root mean square of their column.
    """

    moments: Moments
    bias: bool
    rounding: float

    def as_it_is(self) -> Estimate:
        """κ(Ĥ)."""
        return self._kappa(torch.ones_like(self.moments.mean), self._values)

    def centered(self) -> Estimate:
        """With the mean taken off each column."""
        return self._centered_kappa(torch.ones_like(self.moments.mean), self._centered_values)

    def scaled(self) -> Estimate:
        """With each column divided by its root mean square."""
        return self._kappa(_inverse(self.moments.root_mean_square), self._scaled_values)

    def standardized(self) -> Estimate:
        """Centered, and each column divided by its standard deviation."""
        return self._centered_kappa(_inverse(self.moments.deviation), self._standardized_values)

    def spectra(self) -> dict[str, Tensor]:
        """Eigenvalues of ĤᵀĤ/N, falling, under each: as many as Ĥ has columns, or as are known."""
        return {
            "as it is": self._values.square(),
            "centered": self._with_ones(self._centered_values).square(),
            "scaled": self._scaled_values.square(),
            "standardized": self._with_ones(self._standardized_values).square(),
        }

    @cached_property
    def rank(self) -> int:
        """Singular values of Ĥ that are not zero to rounding; at least so many where the moments are sketched."""
        centered = self.centered_rank
        # Without a column of ones, the mean may add a dimension to the span of the centered rows.
        return centered + 1 if self.bias else min(max(self._count(self._scaled_values), centered), centered + 1)

    @cached_property
    def centered_rank(self) -> int:
        """Rank of the centered H. Columns are scaled first: a column in small units is no deficiency."""
        rank = self._count(self._standardized_values)
        if not self.rounding:
            return rank
        if self.bias:
            return min(rank, self._count(self._scaled_values) - 1)
        return min(rank, self._count(torch.linalg.svdvals(self.moments.root * _inverse(self.moments.root_mean_square))))

    def largest(self) -> Estimate:
        """Largest eigenvalue of HᵀH/N."""
        m = self.moments
        gram = torch.cat([m.mean[None], m.root])
        gram = gram @ gram.T if len(gram) < gram.shape[1] else gram.T @ gram
        top = float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0))
        error = 2 * (m.error * math.sqrt(top) + self.rounding * self._size(torch.ones_like(m.mean))) * math.sqrt(top)
        missed = 0.0 if m.missed is None else float(m.missed.sum())
        return Estimate(top, max(0.0, top - error), top + error + missed, "exact" if not missed else "bound")

    @cached_property
    def _values(self) -> Tensor:
        return self._singular_values(torch.ones_like(self.moments.mean))

    @cached_property
    def _centered_values(self) -> Tensor:
        return torch.linalg.svdvals(self.moments.root)

    @cached_property
    def _scaled_values(self) -> Tensor:
        return self._singular_values(_inverse(self.moments.root_mean_square))

    @cached_property
    def _standardized_values(self) -> Tensor:
        return torch.linalg.svdvals(self.moments.root * _inverse(self.moments.deviation))

    def _singular_values(self, scale: Tensor) -> Tensor:
        """Of M with scaled columns, falling."""
        M = torch.cat([self.moments.mean[None], self.moments.root]) * scale
        if self.bias:
            ones = torch.zeros_like(M[:, :1])
            ones[0] = 1
            M = torch.cat([ones, M], 1)
        return torch.linalg.svdvals(M)

    def _centered_kappa(self, scale: Tensor, s: Tensor) -> Estimate:
        """From the singular values of the centered H, beside which that of the ones stands by itself."""
        return self._kappa(scale, self._with_ones(s), self.centered_rank + self.bias)

    def _with_ones(self, s: Tensor) -> Tensor:
        """Beside the singular values of centered rows, that of the ones, which are orthogonal to them."""
        return torch.cat([s, s.new_ones(1)]).sort(descending=True).values if self.bias else s

    def _kappa(self, scale: Tensor, s: Tensor, rank: int | None = None) -> Estimate:
        """κ with each column multiplied by its scale, (d,), of what has these singular values and this rank."""
        m = self.moments
        rank = self.rank if rank is None else rank
        if rank == 0 or not float(s[0]) > 0:
            return Estimate.undefined("the inputs are all zero")
        top, bottom = float(s[0]), float(s[rank - 1])
        error = m.error * max(top, float((m.deviation * scale).max())) + self.rounding * self._size(scale)
        missed = 0.0 if m.missed is None else float((m.missed * scale.square()).sum())
        low = (top - error) / (bottom + error)
        how = "exact: R factor in float64" if m.missed is None else f"bound: {len(m.root)} random directions"
        if self.rounding > 1e-10:
            how += " of activations in float32"
        if missed:
            # What is missed has rank `beyond` at least, so its smallest eigenvalue is at most this mean.
            low = max(low, (top - error) / math.sqrt(missed / m.beyond))
        resolved = not missed and bottom > 2 * error
        low = max(1.0, low)
        high = (top + error) / (bottom - error) if resolved else math.inf
        return Estimate(max(1.0, top / bottom) if resolved else low, low, high, how)

    def _size(self, scale: Tensor) -> float:
        return float((self.moments.root_mean_square * scale).max())

    def _count(self, s: Tensor) -> int:
        """How many are not zero to rounding, of columns scaled to about one."""
        return (
            int((s > torch.maximum(4 * self.moments.error * s[:1], s.new_tensor([self.rounding]))).sum())
            if len(s)
            else 0
        )


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x, 0.0)
