"""The classical diagonal preconditioners, made from a curvature matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from wellcond.curvature.operator import CurvatureOperator
from wellcond.linalg import DENSE_LIMIT, RandomDirections
from wellcond.parameters import unflatten
from wellcond.preconditioners import DiagonalPreconditioner

FLOOR = 1e-4
"""Entries under this fraction of the largest are raised to it: P would send parameters with next to no curvature far
out of the region where a quadratic says anything."""

PRODUCTS = 120
"""Random ones, for the diagonal or the norms of the rows of a matrix that is too large to be formed."""


def jacobi(curvature: CurvatureOperator, *, floor: float = FLOOR, seed: int = 0) -> DiagonalPreconditioner:
    """P = |diag C|^(−1/2): PᵀCP then has a unit diagonal, within a factor n of the best that a diagonal can do.

    Above 2,000 parameters the diagonal is estimated.

    Args:
        curvature: C, of a problem; Gauss-Newton, or a Hessian by the absolute values of its diagonal.
        floor: entries under this fraction of the largest are raised to it, 0 < floor ≤ 1.
        seed: of the random directions.

    Source: theory, section 3.2; van der Sluis 1969.
    """
    products = None if curvature.size <= DENSE_LIMIT else PRODUCTS
    return _inverse_root(curvature, curvature.diagonal(products, seed=seed).values.abs(), floor)


def row_scaling(
    curvature: CurvatureOperator, *, floor: float = FLOOR, seed: int = 0, squared_rows: Tensor | None = None
) -> DiagonalPreconditioner:
    """P = diag(norms of the rows of C)^(−1/2): P²C then has rows of equal norm. What Adam's √v is said to measure.

    Above 2,000 parameters the norms are estimated.

    Args:
        curvature: C, of a problem.
        floor: norms under this fraction of the largest are raised to it, 0 < floor ≤ 1.
        seed: of the random directions.
        squared_rows: (s, n), samples of the squared norms where there are some, as `Conditioning.squared_row_norms`.

    Source: theory, section 3.2; van der Sluis 1969.
    """
    if squared_rows is not None:
        norms = squared_rows.double().mean(0).sqrt().to(curvature.dtype).to(curvature.device)
        return _inverse_root(curvature, norms, floor)
    if curvature.size <= DENSE_LIMIT:
        return _inverse_root(curvature, torch.linalg.vector_norm(curvature.dense(), dim=1), floor)
    directions = RandomDirections(curvature.size, curvature.dtype, curvature.device, seed)
    squares = torch.zeros(curvature.size, dtype=torch.float64, device=curvature.device)
    with curvature.keeping(PRODUCTS):
        for _ in range(PRODUCTS):
            squares += curvature.matvec(directions.draw()).double().square()
    norms = (squares * (curvature.size / PRODUCTS)).sqrt().to(curvature.dtype)
    return _inverse_root(curvature, norms, floor)


def _inverse_root(curvature: CurvatureOperator, sizes: Tensor, floor: float) -> DiagonalPreconditioner:
    if not 0 < floor <= 1:
        raise ValueError(f"got floor={floor}; it is a fraction of the largest entry, above 0 and at most 1")
    largest = sizes.max()
    if not bool(torch.isfinite(largest) & (largest > 0)):
        raise ValueError(f"the largest entry of the curvature is {float(largest)}; there is nothing to scale by")
    parameters = curvature.parameters
    return DiagonalPreconditioner(parameters, unflatten(sizes.clamp_min(floor * largest).rsqrt(), parameters))
