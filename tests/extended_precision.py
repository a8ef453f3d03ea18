"""κ of a matrix and of its normalizations in 130 digits, where a singular value decomposition in float64 has few."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import torch

Row = list[mpmath.mpf]


def condition_number(H: torch.Tensor, bias: bool, normalization: str = "kappa") -> float:
    """Ratio of the extreme singular values of [1 H] that are not zero, H normalized as `LayerConditioning` names it."""
    with mpmath.workdps(130):
        rows = NORMALIZED[normalization]([[mpmath.mpf(x) for x in row] for row in H.tolist()])
        columns = list(zip(*([mpmath.mpf(1), *row] if bias else row for row in rows), strict=True))
        gram = mpmath.matrix([[mpmath.fdot(a, b) for a in columns] for b in columns])
        eigenvalues = sorted(mpmath.eigsy(gram, eigvals_only=True))
        not_zero = [x for x in eigenvalues if x > eigenvalues[-1] * mpmath.mpf(10) ** -100]
        return float(mpmath.sqrt(not_zero[-1] / not_zero[0]))


def _centered(rows: list[Row]) -> list[Row]:
    means = [mpmath.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
    return [[x - m for x, m in zip(row, means, strict=True)] for row in rows]


def _scaled(rows: list[Row]) -> list[Row]:
    sizes = [mpmath.sqrt(mpmath.fsum(x * x for x in column) / len(rows)) for column in zip(*rows, strict=True)]
    return [[x / s if s > 1e-40 else x for x, s in zip(row, sizes, strict=True)] for row in rows]


def _row_normalized(rows: list[Row]) -> list[Row]:
    centered = [[x - mpmath.fsum(row) / len(row) for x in row] for row in rows]
    scales = [mpmath.sqrt(mpmath.fsum(x * x for x in row) / len(row) + mpmath.mpf(1e-5)) for row in centered]
    return [[x / s for x in row] for row, s in zip(centered, scales, strict=True)]


NORMALIZED: dict[str, Callable[[list[Row]], list[Row]]] = {
    "kappa": lambda rows: rows,
    "centered": _centered,
    "scaled": _scaled,
    "standardized": lambda rows: _scaled(_centered(rows)),
    "row_normalized": _row_normalized,
}
