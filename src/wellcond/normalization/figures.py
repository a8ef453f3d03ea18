"""κ of the extended hidden matrix under each normalization, from the moments of its columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

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

    def kappa(self, scale: Tensor, *, centered: bool = False) -> Estimate:
        """κ with each column multiplied by its scale, (d,)."""
        m = self.moments
        rank = (self.centered_rank + self.bias) if centered else self.rank
        s = self._singular_values(scale, centered)
        if rank == 0 or not float(s[0]) > 0:
            return Estimate.undefined("the inputs are all zero")
        missed = 0.0 if m.missed is None else float((m.missed * scale.square()).sum())
        columns = m.root_mean_square if not centered else m.deviation
        top, bottom = float(s[0]), float(s[rank - 1])
        error = m.error * max(top, float((columns * scale).max())) + self.rounding * self._size(scale)
        low = (top - error) / (bottom + error)
        how = "exact: R factor in float64" if m.missed is None else f"bound: {len(m.root)} random directions"
        if self.rounding > 1e-10:
            how += " of activations in float32"
        if missed:
            # What is missed has rank `beyond` at least, so its smallest eigenvalue is at most this mean.
            low = max(low, (top - error) / math.sqrt(missed / m.beyond))
        resolved = not missed and bottom > 2 * error
        low = max(1.0, low)
        value = max(1.0, top / bottom) if resolved else low
        return Estimate(value, low, (top + error) / (bottom - error) if resolved else math.inf, how)

    @property
    def rank(self) -> int:
        """Singular values of Ĥ that are not zero to rounding; at least so many where the moments are sketched."""
        m, centered = self.moments, self.centered_rank
        if self.bias:
            return centered + 1
        # Without a column of ones, the mean may add a dimension to the span of the centered rows.
        whole = self._count(self._singular_values(_inverse(m.root_mean_square), False))
        return min(max(whole, centered), centered + 1)

    @property
    def centered_rank(self) -> int:
        """Rank of the centered H. Columns are scaled first: a column in small units is no deficiency."""
        m = self.moments
        by_deviation = torch.linalg.svdvals(m.root * _inverse(m.deviation))
        if not self.rounding:
            return self._count(by_deviation)
        by_size = torch.linalg.svdvals(m.root * _inverse(m.root_mean_square))
        return min(self._count(by_deviation), self._count(by_size))

    def largest(self) -> Estimate:
        """Largest eigenvalue of HᵀH/N."""
        m = self.moments
        gram = torch.cat([m.mean[None], m.root])
        gram = gram @ gram.T if len(gram) < gram.shape[1] else gram.T @ gram
        top = float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0))
        error = 2 * (m.error * math.sqrt(top) + self.rounding * self._size(torch.ones_like(m.mean))) * math.sqrt(top)
        missed = 0.0 if m.missed is None else float(m.missed.sum())
        return Estimate(top, max(0.0, top - error), top + error + missed, "exact" if not missed else "bound")

    def _singular_values(self, scale: Tensor, centered: bool) -> Tensor:
        m = self.moments
        M = torch.cat([torch.zeros_like(m.mean)[None] if centered else (m.mean * scale)[None], m.root * scale])
        if self.bias:
            ones = torch.zeros(len(M), 1, dtype=M.dtype, device=M.device)
            ones[0] = 1
            M = torch.cat([ones, M], 1)
        return torch.linalg.svdvals(M)

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


def inverse_or_one(x: Tensor) -> Tensor:
    """1/x, and 1 for a column that is zero: the scale of a change of variables must not be."""
    return torch.where(x > 0, 1 / x, 1.0)
