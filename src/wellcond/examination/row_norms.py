"""Does the optimizer's second moment measure the Hessian's row norms? (theory, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wellcond.linalg import CONFIDENCE, Estimate, jackknife

SHOWN = 1500
"""Points kept for a plot."""


@dataclass(frozen=True)
class RowNormCorrelation:
    """Correlation over parameters of log √v with the log of the Hessian's row norm.

    Attributes:
        correlation: −1 to 1.
        used: parameters that count: those with √v > 0 whose row is not zero.
        root_v, row_norm: (k,), a random sample of the points, for a plot.
    """

    correlation: Estimate
    used: int
    root_v: Tensor
    row_norm: Tensor


def row_norm_correlation(
    squared_rows: Tensor, root_v: Tensor, *, rounding: float = 0.0, seed: int = 0
) -> RowNormCorrelation:
    """The correlation, corrected for the noise of sampled row norms.

    Args:
        squared_rows: (1, n), the squared row norms themselves, or (s, n), s independent unbiased samples of them.
        root_v: (n,), √v of each parameter; NaN where the optimizer has none.
        rounding: row norms under it are zero.
        seed: of the sample of points.

    Sampled row norms are noisy, which lowers a correlation: by the square root of how well they repeat themselves.
    That is measured between halves of the samples, over several ways of halving. The interval is the jackknife's over
    the samples.
    """
    rows, x = squared_rows.cpu().double(), root_v.cpu().double()
    mean = rows.mean(0)
    used = (mean > rounding**2) & (x > 0)
    count = int(used.sum())
    shown = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:SHOWN]
    estimate = _estimated(x[used].log(), rows[:, used])
    return RowNormCorrelation(estimate, count, x[used][shown], mean[used][shown].sqrt())


def _estimated(x: Tensor, squared_rows: Tensor) -> Estimate:
    samples = len(squared_rows)
    if len(x) < 3:
        return Estimate.undefined("fewer than three parameters have both")
    if float(x.std()) == 0:
        return Estimate.undefined("√v is the same for every parameter")
    if samples == 1:
        y = _log_norms(squared_rows)
        value = _covariance(x, y) / math.sqrt(_covariance(x, x) * max(_covariance(y, y), 1e-300))
        return Estimate(value, value - ROUNDING, value + ROUNDING, "exact row norms")
    if samples < 4:
        return Estimate.undefined(f"{samples} random products are too few to tell")
    value = _corrected(x, squared_rows)
    others = [torch.arange(samples) != j for j in range(samples)]
    left_out = torch.tensor([_corrected(x, squared_rows[kept]) for kept in others], dtype=torch.float64)
    half = jackknife(left_out) + ROUNDING
    how = f"row norms from {samples} random products, corrected for their noise; jackknife interval"
    return Estimate(value, max(-1.0, value - half), min(1.0, value + half), how, CONFIDENCE)


ROUNDING = 1e-6
"""What the precision of a float32 second moment can do to a correlation."""


def _corrected(x: Tensor, squared_rows: Tensor) -> float:
    samples = len(squared_rows)
    order, repeats = torch.arange(samples), []
    for shift in range(samples):
        halves = squared_rows[order.roll(shift)].split((samples + 1) // 2)
        repeats.append(_covariance(*(_log_norms(half) for half in halves)))
    y = _log_norms(squared_rows)
    signal = max(sum(repeats) / samples, 1e-12)
    return max(-1.0, min(1.0, _covariance(x, y) / math.sqrt(_covariance(x, x) * signal)))


def _log_norms(squared_rows: Tensor) -> Tensor:
    return squared_rows.mean(0).clamp_min(1e-300).log() / 2


def _covariance(x: Tensor, y: Tensor) -> float:
    return float(((x - x.mean()) * (y - y.mean())).mean())
