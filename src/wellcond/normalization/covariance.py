"""Mean and covariance of a layer's inputs from one pass over them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wellcond.normalization.moments import EPS, ColumnMoments, from_root
from wellcond.normalization.sketch import Sketch

NUMBERS = 2**25
"""In the rows that are kept, at most: 268 MB."""

BLOCK = 1024
"""So many rows are kept at least before they are summed up: each QR decomposition is to be worth its while."""


class Covariance:
    """The rows themselves while they are few; when they are many an R factor of them, or a sketch where it is wide.

    Rows of more than `widest` columns are kept up to `widest` rows and 268 MB; then they are sketched.

    Args:
        widest: columns up to which there is a covariance.
        rounding: relative accuracy of the rows' entries; that of the worst that were added.
    """

    def __init__(self, widest: int, rounding: float):
        self.widest, self.rounding, self.sum_to_zero = widest, rounding, False
        self.waiting: list[Tensor] = []
        self.waits = 0
        self.summary: Factor | Sketch | None = None

    def add(self, pieces: Iterable[Tensor], rounding: float, *, sum_to_zero: bool = False) -> None:
        """Take up rows, (groups, n, width) in float64 a piece, which may be kept.

        Args:
            pieces: the rows; matrices of several groups are kept at once.
            rounding: to which they are known, relative to their columns.
            sum_to_zero: whether each row sums to zero.
        """
        self.rounding, self.sum_to_zero = max(self.rounding, rounding), sum_to_zero
        for x in pieces:
            groups, n, width = x.shape
            self.waiting.append(x)
            self.waits += n
            most = max(width, BLOCK) if width <= self.widest else min(self.widest, NUMBERS // (groups * width))
            if self.waits > most:
                self._sum_up()

    def _sum_up(self) -> None:
        x = torch.cat(self.waiting, 1)
        self.waiting, self.waits = [], 0
        if self.summary is None:
            self.summary = Sketch(x) if x.shape[2] > self.widest else Factor(x)
        self.summary.add(x)

    def moments(self) -> list[ColumnMoments]:
        """Of each group, once all rows are in; none where there were no rows."""
        if self.summary is None:
            rows = torch.cat(self.waiting, 1) if self.waiting else ()
            return [_of_rows(x, sum_to_zero=self.sum_to_zero) for x in rows]
        if self.waiting:
            self._sum_up()
        groups = range(len(self.summary.shift))
        return [self.summary.moments(group, sum_to_zero=self.sum_to_zero) for group in groups]


class Factor:
    """The R factor of [1, H − 1sᵀ], s near the mean of the first rows, brought up to date with rows as they come.

    Below its first row is the R factor of the centered H: singular values are known to rounding, where a Gram matrix
    squares them and loses half the digits, at half the cost.
    """

    def __init__(self, first: Tensor):
        self.shift, self.rows, self.updates = _shift(first), 0, 0
        self.varies = torch.zeros_like(self.shift, dtype=torch.bool)
        self.R = first.new_empty(len(first), 0, first.shape[2] + 1)

    def add(self, x: Tensor) -> None:
        """Take up rows, which are changed."""
        self.rows, self.updates = self.rows + x.shape[1], self.updates + 1
        x -= self.shift
        self.varies |= (x != 0).any(1, keepdim=True)
        self.R = torch.linalg.qr(torch.cat([self.R, nn.functional.pad(x, (1, 0), value=1.0)], 1), mode="r").R

    def moments(self, group: int, *, sum_to_zero: bool) -> ColumnMoments:
        """Of a group's rows, which may each sum to zero."""
        R = self.R[group]
        mean, error = self.shift[group, 0] + R[0, 1:] / R[0, 0], (R.shape[1] + self.updates) * EPS
        F = R[1:, 1:] / math.sqrt(self.rows)
        return from_root(self.rows, mean, self.varies[group, 0], F, error, sum_to_zero=sum_to_zero)


def _of_rows(x: Tensor, *, sum_to_zero: bool) -> ColumnMoments:
    """ColumnMoments of all rows, (N, d)."""
    mean, varies = x[0].clone(), (x != x[:1]).any(0)
    for _ in range(2):  # the mean's own rounding would be left where it is far above the spread
        off = (x - mean).mean(0)
        mean = torch.where(varies, mean + off, mean)
    F = (x - mean - (x - mean).mean(0)) / math.sqrt(len(x))
    # Its rows sum to zero: a reflection that turns (1, …, 1) to the first axis makes that of the first.
    F = F[1:] - F[:1] / (1 + math.sqrt(len(x)))
    return from_root(len(x), mean, varies, F, (sum(F.shape) / 2) * EPS, sum_to_zero=sum_to_zero)


def _shift(x: Tensor) -> Tensor:
    """Near the mean, that sums of squares cancel little; on the value of a column that does not vary."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return torch.where(low == high, low, x.mean(1, keepdim=True))
