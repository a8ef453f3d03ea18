"""Mean and covariance of the columns of a matrix, the covariance as a square root that is known to rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps

ENOUGH = 1e-8
"""A relative error that a root from a Gram matrix may have; rows that are known to less may have a tenth of that."""

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
        resolved: whether another way to make the root would know no more.
        gram: FᵀF without the columns that never vary, where it is at hand.
        how: the root was made.
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
    resolved: bool = True
    gram: Tensor | None = None
    how: str = "R factor in float64"

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
        B = _unreflected(B, v)
    return ColumnMoments(rows, mean, deviation, _spread(B * D, varies), values, error=error, full=full)


def from_gram(
    rows: int, mean: Tensor, C: Tensor, known: Tensor, rounding: float, *, sum_to_zero: bool
) -> ColumnMoments:
    """Moments from the covariance, if it resolves them.

    Args:
        rows: N.
        mean: (d,), of H.
        C: (d, d); columns that never vary are exact zeros.
        known: (d,), e with C_ij known to e_i·e_j·√(C_ii·C_jj).
        rounding: to which H is known, relative to its columns.
        sum_to_zero: as in `from_root`.
    """
    deviation = C.diagonal().sqrt()
    varies = deviation > 0
    D = deviation[varies]
    if not len(D):
        return ColumnMoments(rows, mean, deviation, C[:0], D, full=True)
    C = C[varies][:, varies]
    S = C / torch.outer(D, D)
    if sum_to_zero:
        v = _reflector(D)
        S = _reflected(_reflected(S, v).T, v)[1:, 1:]
    values = torch.linalg.eigvalsh(S).flip(0)
    # Errors have all signs: their norm grows with the root of the number of columns. And the eigenvalues have theirs.
    off = 2 * math.sqrt(len(D)) * float(known[varies].square().max()) + square_error(len(D)) * float(values[:1].sum())
    positive = values.clamp_min(off)
    kept = (values > off) & (off / (2 * positive) < (0.1 * rounding / positive.sqrt()).clamp_min(ENOUGH))
    # Under what the entries are known to there is nothing, where the Gram matrix knows that much.
    if not bool((kept | (values + off < rounding**2)).all()):
        return ColumnMoments(rows, mean, deviation, C[:0], D[:0], resolved=False)
    rank = int(kept.sum())
    if rank == len(values):
        F = torch.linalg.cholesky(S).T
    else:
        squares, vectors = torch.linalg.eigh(S)
        F = (vectors * squares.clamp_min(0).sqrt()).T.flip(0)[:rank]
    if sum_to_zero:
        F = _unreflected(F, v)
    s, full = values[:rank].sqrt(), rank == len(values)
    error = off / (2 * float(s[-1])) if rank else off
    gram, how = C if full else None, "Gram matrix in float64"
    return ColumnMoments(rows, mean, deviation, _spread(F * D, varies), s, error=error, full=full, gram=gram, how=how)


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


def _unreflected(F: Tensor, v: Tensor) -> Tensor:
    """[0 F](I − vvᵀ)."""
    return _reflected(torch.cat([F.new_zeros(len(F), 1), F], 1).T, v).T
