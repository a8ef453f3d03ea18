"""Mean and covariance of rows too wide for their covariance, with what is certain about the rest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wellcond.normalization.moments import EPS, ColumnMoments, root_of_squares

SKETCH = 256
"""Directions and rows that are kept."""

NUMBERS = 2**23
"""In the directions, and in their products, at most: 67 MB. Of very many columns fewer directions fit."""

NEGLIGIBLE = 1e-10
"""A sketch does not see what makes less than this part of the whole: its roots are known to rounding over √ of it."""


class Sketch:
    """The covariance C of wide rows seen along random directions Ω, and its diagonal; memory O(d).

    The root is that of Nyström's matrix CΩ(ΩᵀCΩ)⁺ΩᵀC. What it misses of C is positive semidefinite, its trace is
    known, and its rank adds to that of the matrix: bounds that hold with certainty, whatever Ω.

    Args:
        first: rows of those to come, (groups, n, d).

    Source: Tropp, Yurtsever, Udell and Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from
    streaming data", NeurIPS 2017.
    """

    def __init__(self, first: Tensor):
        groups, _, width = first.shape
        generator = torch.Generator(device=first.device).manual_seed(0)
        self.k = k = max(1, min(SKETCH, width, NUMBERS // (groups * width)))
        self.directions = torch.randn(width, k, dtype=torch.float64, device=first.device, generator=generator)
        self.products = first.new_zeros(groups, width, k)
        self.squares, self.total = first.new_zeros(groups, width), first.new_zeros(groups, width)
        self.sample = first.new_zeros(groups, 0, width)
        self.shift, self.rows = first[:, :1].clone(), 0
        self.varies = torch.zeros_like(self.shift, dtype=torch.bool)

    def add(self, x: Tensor) -> None:
        """Take up rows, (groups, n, width) in float64, which are changed."""
        x -= self.shift
        self.varies |= (x != 0).any(1, keepdim=True)
        self.rows += x.shape[1]
        self.total += x.sum(1)
        self.squares += torch.linalg.vector_norm(x, dim=1).square()
        self.products.baddbmm_(x.mT, x @ self.directions)
        self.sample = torch.cat([self.sample, x[:, : self.k + 1 - self.sample.shape[1]]], 1)

    def moments(self, group: int, *, sum_to_zero: bool) -> ColumnMoments:
        """Of a group's rows; what they sum to makes no difference to a sketch."""
        offset = self.total[group] / self.rows
        variance = (self.squares[group] / self.rows - offset.square()).clamp_min(0)
        seen = self.products[group] / self.rows - torch.outer(offset, offset @ self.directions)
        core = self.directions.T @ seen
        eigenvalues, vectors = torch.linalg.eigh((core + core.T) / 2)
        kept = eigenvalues > NEGLIGIBLE * eigenvalues[-1].clamp_min(0)
        root = (seen @ vectors[:, kept] / eigenvalues[kept].sqrt()).T
        missed = (variance - root.square().sum(0)).clamp_min(0)
        everything = self.rows <= len(root) + 1
        if everything or float(missed.sum()) <= NEGLIGIBLE * float(variance.sum()):
            missed.zero_()
        deviation = torch.where(self.varies[group, 0], (root.square().sum(0) + missed).sqrt(), 0.0)
        scaled = root * torch.where(deviation > 0, 1 / deviation, 0.0)
        return ColumnMoments(
            self.rows,
            self.shift[group, 0] + offset,
            deviation,
            root,
            root_of_squares(scaled @ scaled.T)[0],
            None if everything else missed,
            self._rank_outside(group, root) if missed.any() else 0,
            math.sqrt(len(offset)) * EPS / math.sqrt(NEGLIGIBLE),
        )

    def _rank_outside(self, group: int, root: Tensor) -> int:
        """A lower bound of the dimensions of the centered rows that are not in the span of the root's."""
        centered = self.sample[group] - self.sample[group].mean(0)
        Q = torch.linalg.qr(root.T).Q
        outside = torch.addmm(centered, centered @ Q, Q.T, alpha=-1)
        sizes, _ = root_of_squares(outside @ outside.T)
        return max(1, int((sizes > 1e-6 * torch.linalg.matrix_norm(centered)).sum()))
