"""κ of the extended hidden matrix under each normalization, from the moments of its columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wellcond.linalg import Estimate
from wellcond.normalization.moments import EPS, SQUARES, ColumnMoments, root_of_squares, square_error

NORMALIZATIONS = ("as_it_is", "centered", "scaled", "standardized")

GRADED = 1e10
"""κ from which the singular values between the largest and the smallest are lost in Gram matrices."""


@dataclass(frozen=True)
class Figures:
    """Ĥ/√N under the normalizations: with the mean taken off each column ("centered"), each divided by its root mean
    square ("scaled"), or centered and divided by its standard deviation ("standardized").

    MᵀM = ĤᵀĤ/N for M = [[1, μᵀ], [0, F]], FᵀF the covariance: M has the singular values of Ĥ/√N.

    Args:
        moments: of H.
        bias: whether Ĥ has a column of ones.
        rounding: to which the entries of H are known, relative to the root mean square of their column.
    """

    moments: ColumnMoments
    bias: bool
    rounding: float

    @cached_property
    def as_it_is(self) -> Tensor:
        """Singular values, falling; so are the others."""
        return self._singular_values(self._ones)

    @cached_property
    def centered(self) -> Tensor:
        return self._with_ones(self._singular_values(self._ones, with_mean=False))

    @cached_property
    def scaled(self) -> Tensor:
        return self._singular_values(_inverse(self.moments.root_mean_square))

    @property
    def standardized(self) -> Tensor:
        return self._with_ones(self.moments.values)

    def kappa(self, normalization: str) -> Estimate:
        """κ of Ĥ."""
        m, s, centers = self.moments, getattr(self, normalization), normalization in ("centered", "standardized")
        scales = {"scaled": _inverse(m.root_mean_square), "standardized": _inverse(m.deviation)}
        scale = scales.get(normalization, self._ones)
        # Without a column of ones the span of what is missed may lose a dimension to the mean.
        beyond = m.beyond - (not centers and not self.bias)
        rank = self.centered_rank + self.bias if centers else self.rank
        if rank == 0 or not float(s[0]) > 0:
            return Estimate.undefined("the inputs are all zero")
        top, bottom = float(s[0]), float(s[rank - 1])
        error = m.error * max(top, float((m.deviation * scale).max())) + self.rounding * self._size(scale)
        missed = 0.0 if m.missed is None else float((m.missed * scale.square()).sum())
        low = (top - error) / (bottom + error)
        high = (top + error) / (bottom - error) if bottom > 2 * error else math.inf
        if m.full and rank == len(s):
            low, high = max(low, top / bottom * (1 - self._relative)), min(high, top / bottom * (1 + self._relative))
        # Of the eigenvalues of squares, where these are enough.
        rounding = min(square_error(len(s)) * min(top / bottom, GRADED) ** 2, SQUARES)
        low, high = low * (1 - rounding), high * (1 + rounding)
        how = "exact: R factor in float64" if m.missed is None else f"bound: {len(m.root)} random directions"
        if self.rounding > 1e-10:
            how += " of activations in float32"
        if m.missed is not None:
            high = math.inf
            if beyond > 0:  # a rank that it has at least: its smallest eigenvalue is at most this mean
                low = max(low, (top - error) / math.sqrt(missed / beyond))
        low = max(1.0, low)
        return Estimate(max(1.0, top / bottom) if math.isfinite(high) else low, low, high, how)

    def spectrum(self, normalization: str) -> Tensor:
        """Eigenvalues of ĤᵀĤ/N, falling: as many as Ĥ has columns, or as are known."""
        m, s = self.moments, getattr(self, normalization)
        length = min(m.rows, len(m.mean) + self.bias) if m.missed is None else len(m.root) + self.bias
        return torch.cat([s, s.new_zeros(max(0, length - len(s)))]).square()[:length]

    @cached_property
    def rank(self) -> int:
        """Singular values of Ĥ that are not zero to rounding; a lower bound where the moments are sketched."""
        centered = self.centered_rank
        if self.bias or self.moments.missed is not None:  # the mean may lie in the span of what is missed
            return centered + self.bias
        # Without a column of ones, the mean may add a dimension to the span of the centered rows.
        return min(max(self._count(self.scaled), centered), centered + 1)

    @cached_property
    def centered_rank(self) -> int:
        """Rank of the centered H. Columns are scaled first: a column in small units is no deficiency."""
        rank = self._count(self.moments.values)
        if not self.rounding:
            return rank
        # Far from zero, a spread may be less than the entries are known to.
        scale = _inverse(self.moments.root_mean_square)
        values = self.scaled if self.bias else self._singular_values(scale, with_mean=False)
        return min(rank, int((values > self.rounding).sum()) - self.bias)

    def largest(self) -> Estimate:
        """Largest eigenvalue of HᵀH/N."""
        m = self.moments
        values = self._singular_values(self._ones, with_ones=False) if self.bias else self.as_it_is
        size = float(values[0]) if len(values) else 0.0
        top = size**2
        error = 2 * (m.error * size + self.rounding * self._size(self._ones)) * size
        missed = 0.0 if m.missed is None else float(m.missed.sum())
        return Estimate(top, max(0.0, top - error), top + error + missed, "exact" if not missed else "bound")

    @property
    def _ones(self) -> Tensor:
        return torch.ones_like(self.moments.mean)

    def _singular_values(self, scale: Tensor, *, with_mean: bool = True, with_ones: bool | None = None) -> Tensor:
        """Of M with scaled columns, falling; without its first row, or without its first column, if so wanted."""
        m, with_ones = self.moments, self.bias if with_ones is None else with_ones
        mean = m.mean * scale if with_mean else torch.zeros_like(m.mean)
        # Columns that never vary lie along the ones: together they are one column.
        one = math.sqrt((with_ones and with_mean) + float(mean[~m.varies].square().sum()))
        mean, scale = mean[m.varies], scale[m.varies]
        root = m.root[:, m.varies] * scale
        beside = one > 0 or (not m.full and bool(mean.any()))
        values, known = root_of_squares(_bordered_squares(one, mean, root), len(root) + beside)
        if known:
            return values
        if wide := len(root) < root.shape[1]:
            # The rows, and of the mean what lies in their span and what does not.
            R = torch.linalg.qr(torch.cat([root, mean[None]]).T, mode="r").R
            size = float(torch.linalg.vector_norm(root, dim=0).max())
            root, inside, outside = R[:, :-1].T[:, : len(root)], R[: len(root), -1], float(R[len(root) :, -1].abs())
            if m.full:  # beside the rows is (1, …, 1) in columns that are not scaled, and nothing
                outside = float((mean / scale).sum().abs() / torch.linalg.vector_norm(1 / scale)) if one else 0.0
            else:
                weights = torch.linalg.solve_triangular(root.T, inside[:, None], upper=True)
                noise = torch.linalg.vector_norm(inside) + size * torch.linalg.vector_norm(weights)
                outside = outside if outside > 4 * m.error * float(noise) else 0.0
            one, mean = math.hypot(one, outside), inside
        # Of the matrix itself rounding beside a large mean would hide the small ones; its inverse has them.
        inverse = _inverse_of(one, mean, root, lower=wide)
        if float(values[0]) * float(torch.linalg.vector_norm(inverse)) < GRADED:
            small = torch.linalg.eigvalsh(inverse @ inverse.T).clamp_min(torch.finfo(root.dtype).tiny).rsqrt()
        else:  # squares say nothing of what lies between the ends
            small = torch.linalg.svdvals(inverse).flip(0).reciprocal()
            values = torch.linalg.svdvals(_bordered(one, mean, root.new_zeros(len(root)), root))
        values = values[: len(small)]
        limit = torch.maximum((values[0] * small[-1]).sqrt(), 4 * EPS * len(values) * values[0])
        return torch.where(values > limit, values, torch.minimum(small, limit))

    def _with_ones(self, s: Tensor) -> Tensor:
        """Beside the singular values of centered rows, that of the ones, which are orthogonal to them."""
        return torch.cat([s, s.new_ones(1)]).sort(descending=True).values if self.bias else s

    @cached_property
    def _relative(self) -> float:
        """Error of a κ relative to it, M known up to a factor from the left: infinite where that says nothing."""
        m = self.moments
        if not len(m.values):
            return 0.0
        off = (self.rounding + EPS) * float((m.root_mean_square * _inverse(m.deviation)).max())
        off = (m.error + 2 * off) / float(m.values[-1])
        return 2 * off / (1 - off) if off < 0.5 else math.inf

    def _size(self, scale: Tensor) -> float:
        return float((self.moments.root_mean_square * scale).max())

    def _count(self, s: Tensor) -> int:
        """How many are not zero to rounding, of columns scaled to about one."""
        cut = max(4 * self.moments.error * float(s[:1].sum()), self.rounding)
        return int((s > cut).sum())


def _bordered_squares(one: float, mean: Tensor, F: Tensor) -> Tensor:
    """MᵀM, or MMᵀ if that is smaller, of M = [[one, meanᵀ], [0, F]], without its first column if `one` is 0."""
    if len(F) < len(mean):
        side = F @ mean
        return _bordered(one**2 + float(mean @ mean), side, side, F @ F.T)
    squares = F.T @ F + torch.outer(mean, mean)
    return _bordered(one**2, one * mean, one * mean, squares) if one else squares


def _bordered(corner: float, row: Tensor, column: Tensor, inner: Tensor) -> Tensor:
    """[[corner, rowᵀ], [column, inner]]."""
    first = torch.cat([row.new_tensor([corner]), row])
    return torch.cat([first[None], torch.cat([column[:, None], inner], 1)])


def _inverse_of(one: float, mean: Tensor, F: Tensor, *, lower: bool) -> Tensor:
    """A matrix with the singular values of the inverse of [[one, meanᵀ], [0, F]], F triangular and regular.

    Without the first column if `one` is 0. The largest is known to the conditioning of F, columns scaled, whatever the
    mean.
    """
    n = len(F)
    inverse = torch.linalg.solve_triangular(F, torch.eye(n, dtype=F.dtype, device=F.device), upper=not lower)
    row = mean @ inverse
    if one:
        inverse = _bordered(1 / one, -row / one, row.new_zeros(n), inverse)
    elif mean.any():
        # [[μᵀ], [F]] is F with (I + wwᵀ)^½ in front, w = F⁻ᵀμ.
        size = float(torch.linalg.vector_norm(row))
        w = row / size
        inverse = inverse - torch.outer(inverse @ w, w) * (1 - 1 / math.hypot(1, size))
    return inverse


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x, 0.0)
