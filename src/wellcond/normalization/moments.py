"""Mean and covariance of a layer's inputs from one pass over them, as a square root that loses no digits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps

SKETCH = 256
"""Directions and rows that are kept of a layer too wide for its whole covariance."""

NEGLIGIBLE = 1e-10
"""What a sketch misses counts as nothing under this part of the whole, and so do its own directions: their roots are
known to √ of it times rounding."""


@dataclass(frozen=True)
class Moments:
    """What is known of a matrix H with N rows and d columns.

    Attributes:
        rows: N.
        mean: (d,), of each column.
        varies: (d,), whether a column has two values at all.
        root: (r, d), F with FᵀF = (H − 1μᵀ)ᵀ(H − 1μᵀ)/N, or below it where sketched.
        missed: (d,), diagonal of what FᵀF is below it, which is positive semidefinite; None where nothing is missed.
        beyond: the rank of what is missed is at least this.
        error: of F, relative to its columns.
    """

    rows: int
    mean: Tensor
    varies: Tensor
    root: Tensor
    missed: Tensor | None
    beyond: int
    error: float

    @property
    def deviation(self) -> Tensor:
        """(d,), standard deviation of each column; 0 where it never varies."""
        squares = self.root.square().sum(0) + (0.0 if self.missed is None else self.missed)
        return torch.where(self.varies, squares.sqrt(), 0.0)

    @property
    def root_mean_square(self) -> Tensor:
        """(d,), of each column."""
        return torch.hypot(self.mean, self.deviation)


class WholeCovariance:
    """The R factor of [1, H − 1sᵀ], s the first row, brought up to date with rows as they come.

    Below its first row is the R factor of the centered H: singular values are known to rounding, where a Gram matrix
    would square them and lose half the digits. A QR decomposition takes two to three times a Gram matrix's time.

    Args:
        groups: matrices to keep at once.
        width: d.
    """

    def __init__(self, groups: int, width: int, like: Tensor):
        # R, and below it rows that wait, so many that each QR decomposition is worth its while, and at most 134 MB.
        waiting = max(256, min(4 * (width + 1), 2**24 // (width + 1)))
        self.stack = like.new_empty(groups, width + 1 + waiting, width + 1)
        self.filled = self.rows = self.updates = 0
        self.waiting = False

    def add(self, x: Tensor) -> None:
        """Take up rows, (groups, n, width) in float64."""
        if not self.rows:
            self.shift = x[:, :1].clone()
            self.varies = torch.zeros_like(self.shift, dtype=torch.bool)
        self.rows += x.shape[1]
        while x.shape[1]:
            new = self.stack[:, self.filled : self.filled + x.shape[1]]
            new[..., :1] = 1
            torch.sub(x[:, : new.shape[1]], self.shift, out=new[..., 1:])
            self.varies |= (new[..., 1:] != 0).any(1, keepdim=True)
            self.filled, self.waiting = self.filled + new.shape[1], True
            x = x[:, new.shape[1] :]
            if self.filled == self.stack.shape[1]:
                self._update()

    def _update(self) -> None:
        R = torch.linalg.qr(self.stack[:, : self.filled], mode="r").R
        self.filled, self.updates = R.shape[1], self.updates + 1
        self.stack[:, : self.filled] = R
        self.waiting = False

    def moments(self, group: int) -> Moments:
        if self.waiting:
            self._update()
        R = self.stack[group, : self.filled]
        return Moments(
            self.rows,
            self.shift[group, 0] + R[0, 1:] / R[0, 0],
            self.varies[group, 0],
            R[1:, 1:] / math.sqrt(self.rows),
            None,
            0,
            (R.shape[1] + self.updates) * EPS,
        )


class SketchedCovariance:
    """The covariance C of wide rows seen along random directions Ω, and its diagonal; memory O(d).

    The root is that of Nyström's matrix CΩ(ΩᵀCΩ)⁺ΩᵀC. What it misses of C is positive semidefinite, its trace is
    known, and its rank adds to that of the matrix: bounds that hold with certainty, whatever Ω.

    Args:
        groups: matrices to keep at once.
        width: d.

    Source: Tropp, Yurtsever, Udell and Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from
    streaming data", NeurIPS 2017.
    """

    def __init__(self, groups: int, width: int, like: Tensor, seed: int = 0):
        generator = torch.Generator(device=like.device).manual_seed(seed)
        k = min(SKETCH, width)
        self.directions = torch.randn(width, k, dtype=torch.float64, device=like.device, generator=generator)
        self.products = like.new_zeros(groups, width, k)
        self.squares, self.total = like.new_zeros(groups, width), like.new_zeros(groups, width)
        self.sample = like.new_zeros(groups, 0, width)
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """Take up rows, (groups, n, width) in float64."""
        if not self.rows:
            self.shift = x[:, :1].clone()
            self.varies = torch.zeros_like(self.shift, dtype=torch.bool)
        x = x - self.shift
        self.varies |= (x != 0).any(1, keepdim=True)
        self.rows += x.shape[1]
        self.total += x.sum(1)
        self.squares += x.square().sum(1)
        self.products += x.mT @ (x @ self.directions)
        self.sample = torch.cat([self.sample, x[:, : SKETCH + 1 - self.sample.shape[1]]], 1)

    def moments(self, group: int) -> Moments:
        offset = self.total[group] / self.rows
        variance = (self.squares[group] / self.rows - offset.square()).clamp_min(0)
        seen = self.products[group] / self.rows - torch.outer(offset, offset @ self.directions)
        core = self.directions.T @ seen
        eigenvalues, vectors = torch.linalg.eigh((core + core.T) / 2)
        kept = eigenvalues > NEGLIGIBLE * eigenvalues[-1].clamp_min(0)
        root = (seen @ vectors[:, kept] / eigenvalues[kept].sqrt()).T
        missed = (variance - root.square().sum(0)).clamp_min(0)
        if self.rows <= root.shape[0] + 1 or float(missed.sum()) <= NEGLIGIBLE * float(variance.sum()):
            missed = torch.zeros_like(missed)
        return Moments(
            self.rows,
            self.shift[group, 0] + offset,
            self.varies[group, 0],
            root,
            missed if missed.any() else None,
            self._rank_outside(group, root) if missed.any() else 0,
            math.sqrt(len(offset)) * EPS / math.sqrt(NEGLIGIBLE),
        )

    def _rank_outside(self, group: int, root: Tensor) -> int:
        """At least so many dimensions of the centered rows are not in the span of the root's."""
        centered = self.sample[group] - self.sample[group].mean(0)
        Q = torch.linalg.qr(root.T).Q
        outside = centered - (centered @ Q) @ Q.T
        return max(1, int((torch.linalg.svdvals(outside) > 1e-6 * torch.linalg.matrix_norm(centered)).sum()))
