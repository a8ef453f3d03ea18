"""Mean and covariance of the columns of a matrix, the covariance as a square root that is known to rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps

SQUARES = 2e-9
"""Relative error up to which singular values are taken from eigenvalues of a Gram matrix."""


@dataclass(frozen=True)
class ColumnMoments:
    """What is known of a matrix H with N rows and d columns.

    Attributes:
        rows: N.
        mean: (d,), of each column.
        deviation: (d,), of each column; 0 where it never varies.
        root: (r, d), F with FᵀF = (H − 1μᵀ)ᵀ(H − 1μᵀ)/N, of full row rank, or below it where sketched; triangular
            without its zero columns if it is square.
        values: (r,), falling, the singular values of F with columns divided by their deviations.
        missed: (d,), diagonal of what FᵀF is below it, which is positive semidefinite; None where nothing is missed.
        beyond: the rank of what is missed is at least this.
        error: of F, relative to the columns of H − 1μᵀ.
        full: whether what F lacks to full column rank is known without rounding: columns that never vary, and one
            dimension of rows that sum to zero. Then F is exact up to a factor I + E from the left,
            ‖E‖ ≤ error/values[-1].
    """

    rows: int
    mean: Tensor
    deviation: Tensor
    root: Tensor
    values: Tensor
    missed: Tensor | None = None
    beyond: int = 0
    error: float = EPS
    full: bool = False

    @property
    def varies(self) -> Tensor:
        """(d,), whether a column has two values at all."""
        return self.deviation > 0

    @property
    def root_mean_square(self) -> Tensor:
        """(d,), of each column."""
        return torch.hypot(self.mean, self.deviation)


def from_root(rows: int, mean: Tensor, varies: Tensor, F: Tensor, error: float, *, sum_to_zero: bool) -> ColumnMoments:
    """Moments from any F, its rank cut where rounding makes the rest.

    Args:
        rows: N.
        mean: (d,), of H.
        varies: (d,), which columns have two values.
        F: (k, d).
        error: of F, relative to its columns.
        sum_to_zero: whether each row of H does, so that one dimension is missing.
    """
    deviation = torch.where(varies, torch.linalg.vector_norm(F, dim=0), 0.0)
    varies = deviation > 0
    D = deviation[varies]
    B = F[:, varies] / D
    if reflects := sum_to_zero and len(D) > 0:
        v = _reflector(D)
        B = _reflected(B.T, v).T[:, 1:]
    if len(B) > B.shape[1]:
        B = torch.linalg.qr(B, mode="r").R
    values, known = root_of_squares(B @ B.T)
    if not known:
        # Wide: the triangular factor has the same left singular vectors.
        square = torch.linalg.qr(B.T, mode="r").R.T if len(B) < B.shape[1] else B
        values = torch.linalg.svdvals(square)
        rank = int((values > 4 * error * values[:1]).sum())
        if rank < len(B):
            B, values = torch.linalg.svd(square).U[:, :rank].T @ B, values[:rank]
    full = len(B) == B.shape[1]
    if reflects:
        B = _reflected(torch.cat([B.new_zeros(len(B), 1), B], 1).T, v).T  # [0 B](I − vvᵀ)
    return ColumnMoments(rows, mean, deviation, _spread(B * D, varies), values, error=error, full=full)


def root_of_squares(squares: Tensor, rank: int | None = None) -> tuple[Tensor, bool]:
    """Singular values, falling, of a matrix with this Gram matrix and rank; and whether all are known to `SQUARES`."""
    values = torch.linalg.eigvalsh(squares).flip(0)[:rank]
    known = not len(values) or float(values[-1]) * SQUARES > square_error(len(squares)) * float(values[0])
    return values.clamp_min(0).sqrt(), known


def square_error(n: int) -> float:
    """Of the eigenvalues that LAPACK finds of n × n symmetric matrices, relative to the largest."""
    return 4 * EPS * math.sqrt(n)


def _spread(F: Tensor, varies: Tensor) -> Tensor:
    """F with columns of zeros in between, for those that never vary."""
    root = F.new_zeros(len(F), len(varies))
    root[:, varies] = F
    return root


def _reflector(x: Tensor) -> Tensor:
    """v with (I − vvᵀ)x along the first axis."""
    v = x / torch.linalg.vector_norm(x)
    v = torch.cat([v[:1] + torch.copysign(v.new_ones(1), v[:1]), v[1:]])
    return v * (math.sqrt(2) / torch.linalg.vector_norm(v))


def _reflected(X: Tensor, v: Tensor) -> Tensor:
    """(I − vvᵀ)X."""
    return X - torch.outer(v, v @ X)
