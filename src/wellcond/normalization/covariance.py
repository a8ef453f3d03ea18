"""Mean and covariance of a layer's inputs from one pass over them: `WholeCovariance`, and `Factor` for a second one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wellcond.normalization.moments import EPS, ColumnMoments, from_gram, from_root
from wellcond.normalization.sketch import Sketch

NUMBERS = 2**25
"""In the rows that are kept, at most: 268 MB."""

BLOCK = 1024
"""So many rows are kept at least before they are summed up: of fewer the covariance is not needed."""


class WholeCovariance:
    """The rows themselves while they are few; when they are many their Gram matrix, or a sketch of it where it is wide.

    What the Gram matrix, in float64, does not resolve its moments say: `Factor` is the way to know it. Rows of more
    than `widest` columns are kept up to so many of them and 268 MB; then they are sketched.

    Args:
        groups: matrices to keep at once.
        width: d.
        widest: columns up to which there is a covariance.
    """

    def __init__(self, groups: int, width: int, widest: int):
        self.shape = groups, width
        self.most = max(width, BLOCK) if width <= widest else min(widest, NUMBERS // (groups * width))
        self.wide = width > widest
        self.waiting: list[Tensor] = []
        self.waits = 0
        self.summary: Gram | Sketch | None = None

    def add(self, x: Tensor) -> None:
        """Take up rows, (groups, n, width) in float64; they may be kept."""
        self.waiting.append(x)
        self.waits += x.shape[1]
        if self.waits > self.most:
            self._sum_up()

    def _sum_up(self) -> None:
        x = torch.cat(self.waiting, 1)
        self.waiting, self.waits = [], 0
        if self.summary is None:
            self.summary = Sketch(*self.shape, x) if self.wide else Gram(x)
        self.summary.add(x)

    def moments(self, group: int, rounding: float, *, sum_to_zero: bool) -> ColumnMoments:
        """Of a group's rows, which are known to `rounding` relative to their columns, and may each sum to zero."""
        if self.summary is None:
            return _of_rows(torch.cat([x[group] for x in self.waiting]), sum_to_zero=sum_to_zero)
        if self.waiting:
            self._sum_up()
        return self.summary.moments(group, rounding, sum_to_zero=sum_to_zero)


class Gram:
    """The Gram matrix of rows about a fixed shift, near the mean of the first of them."""

    def __init__(self, first: Tensor):
        self.shift, self.rows = _shift(first), 0
        self.total, self.gram = torch.zeros_like(self.shift), first.new_zeros(*first.shape[::2], first.shape[2])

    def add(self, x: Tensor) -> None:
        """Take up rows, which are changed."""
        self.rows += x.shape[1]
        x -= self.shift
        self.total += x.sum(1, keepdim=True)
        self.gram.baddbmm_(x.mT, x)

    def moments(self, group: int, rounding: float, *, sum_to_zero: bool) -> ColumnMoments:
        """As `WholeCovariance.moments`."""
        offset = self.total[group, 0] / self.rows
        G = self.gram[group].triu()
        G = (G + G.triu(1).T) / self.rows
        size = G.diagonal().clone()
        C = G.addr_(offset, offset, alpha=-1)
        C.diagonal().clamp_(min=EPS * size)
        # Of products summed in blocks; and what the square of the offset takes off.
        unit = EPS * (16 + math.sqrt(self.rows / 256))
        error = torch.where(size > 0, (unit * size / C.diagonal()).sqrt(), 0.0)
        mean = self.shift[group, 0] + offset
        return from_gram(self.rows, mean, C, error, rounding, sum_to_zero=sum_to_zero)


class Factor:
    """The R factor of [1, H − 1sᵀ], s the first rows' mean, brought up to date with rows as they come.

    Below its first row is the R factor of the centered H: singular values are known to rounding, where a Gram matrix
    squares them and loses half the digits, at two to three times its cost.

    Args:
        groups, width: as of `WholeCovariance`.
    """

    def __init__(self, groups: int, width: int):
        # R, and below it rows that wait, so many that each QR decomposition is worth its while, and at most 134 MB.
        self.most = width + 1 + max(256, min(4 * (width + 1), 2**24 // (width + 1)))
        self.shape = groups, width
        self.rows = self.updates = 0

    def add(self, x: Tensor) -> None:
        if not self.rows:
            groups, width = self.shape
            self.stack, self.filled = x.new_empty(groups, self.most, width + 1), 0
            self.shift = _shift(x)
            self.varies = torch.zeros_like(self.shift, dtype=torch.bool)
        self.rows += x.shape[1]
        x -= self.shift
        self.varies |= (x != 0).any(1, keepdim=True)
        while x.shape[1]:
            new = self.stack[:, self.filled : self.filled + x.shape[1]]
            new[..., :1] = 1
            new[..., 1:] = x[:, : new.shape[1]]
            self.filled += new.shape[1]
            x = x[:, new.shape[1] :]
            if self.filled == self.most:
                self._update()

    def _update(self) -> None:
        R = torch.linalg.qr(self.stack[:, : self.filled], mode="r").R
        self.filled, self.updates = R.shape[1], self.updates + 1
        self.stack[:, : self.filled] = R

    def moments(self, group: int, rounding: float, *, sum_to_zero: bool) -> ColumnMoments:
        R = torch.linalg.qr(self.stack[group, : self.filled], mode="r").R
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
