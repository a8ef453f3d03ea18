"""The classical diagonal preconditioners, made from a curvature matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wellcond.curvature.operator import CurvatureOperator
from wellcond.linalg import RandomDirections
from wellcond.parameters import unflatten
from wellcond.preconditioners import Diagonal

DENSE_LIMIT = 2000
"""Up to this many parameters the matrix is formed."""

FLOOR = 1e-4
"""Entries under this fraction of the largest are raised to it: P would send parameters with next to no curvature far
out of the region where a quadratic says anything."""


def jacobi(curvature: CurvatureOperator, *, floor: float = FLOOR, probes: int = 100, seed: int = 0) -> Diagonal:
    """P = |diag C|^(−1/2): PᵀCP then has a unit diagonal, within a factor n of the best that a diagonal can do.

    Args:
        curvature: C, of a problem; Gauss-Newton, or a Hessian by the absolute values of its diagonal.
        floor: entries under this fraction of the largest are raised to it, 0 < floor ≤ 1.
        probes: random products for the diagonal above 2,000 parameters; it is then an estimate (Bekas, Kokiopoulou and
            Saad 2007).
        seed: of the probes.

    Source: theory, section 3.2; van der Sluis 1969.
    """
    if curvature.size <= DENSE_LIMIT:
        diagonal = curvature.dense().diagonal()
    else:
        diagonal = _sampled(curvature, probes, seed, torch.mul)
    return _inverse_root(curvature, diagonal.abs(), floor)


def row_scaling(curvature: CurvatureOperator, *, floor: float = FLOOR, probes: int = 100, seed: int = 0) -> Diagonal:
    """P = diag(norms of the rows of C)^(−1/2): P²C then has rows of equal norm. What Adam's √v is said to measure.

    Args:
        curvature: C, of a problem.
        floor: norms under this fraction of the largest are raised to it, 0 < floor ≤ 1.
        probes: random products for the norms above 2,000 parameters; they are then estimates.
        seed: of the probes.

    Source: theory, section 3.2; van der Sluis 1969.
    """
    if curvature.size <= DENSE_LIMIT:
        norms = torch.linalg.vector_norm(curvature.dense(), dim=1)
    else:
        norms = _sampled(curvature, probes, seed, lambda _, Cv: Cv.square()).sqrt()
    return _inverse_root(curvature, norms, floor)


def _sampled(curvature: CurvatureOperator, probes: int, seed: int, f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean of f(v, Cv) over random signs v, (n,)."""
    if probes < 1:
        raise ValueError(f"got probes={probes}; at least one random product is needed")
    directions = RandomDirections(curvature.size, curvature.dtype, curvature.device, seed)
    total = torch.zeros(curvature.size, dtype=curvature.dtype, device=curvature.device)
    for _ in range(probes):
        v = directions.draw().sign()
        total += f(v, curvature.matvec(v))
    return total / probes


def _inverse_root(curvature: CurvatureOperator, sizes: Tensor, floor: float) -> Diagonal:
    if not 0 < floor <= 1:
        raise ValueError(f"got floor={floor}; it is a fraction of the largest entry, above 0 and at most 1")
    largest = sizes.max()
    if not bool(torch.isfinite(largest) & (largest > 0)):
        raise ValueError(f"the largest entry of the curvature is {float(largest)}; there is nothing to scale by")
    parameters = curvature.problem.parameters
    return Diagonal(parameters, unflatten(sizes.clamp_min(floor * largest).rsqrt(), parameters))
