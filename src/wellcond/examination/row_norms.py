"""Does the optimizer's second moment measure the Hessian's row norms? (theory, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wellcond.linalg import CONFIDENCE, Estimate
from wellcond.parameters import flatten
from wellcond.preconditioners import Diagonal

SHOWN = 1500
"""Points kept for a plot."""


@dataclass(frozen=True)
class RowNormCorrelation:
    """Correlation over parameters of log √v with the log of the Hessian's row norm.

    Attributes:
        correlation: −1 to 1.
        used: parameters that count: those whose row is not zero.
        root_v, row_norm: (k,), a random sample of the points, for a plot.
    """

    correlation: Estimate
    used: int
    root_v: Tensor
    row_norm: Tensor


def row_norm_correlation(squared_rows: Tensor, P: Diagonal, *, seed: int = 0) -> RowNormCorrelation:
    """The correlation, corrected for the noise of sampled row norms.

    Args:
        squared_rows: (s, n), s independent unbiased samples of the squared row norms from as many uniform
            directions; s = 1 is taken as exact.
        P: the optimizer's preconditioner over the same parameters; 1/P_ii² is √v (plus ε).
        seed: of the sample of points.

    The mean of s samples of row i is its squared norm times χ²_s/s, whatever the row: the noise of its logarithm has
    the known variance ψ'(s/2)/4, which is taken off. The interval is the jackknife's over the directions.
    """
    samples = len(squared_rows)
    x = -2 * flatten([s.expand(p.shape) for s, p in zip(P.scales, P.parameters, strict=True)]).double().cpu().log()
    rows = squared_rows.double().cpu()
    mean = rows.mean(0)
    used = mean > torch.finfo(squared_rows.dtype).eps ** 2 * mean.max()
    count = int(used.sum())
    shown = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:SHOWN]
    x = x[used]
    points = x[shown].exp(), mean[used][shown].sqrt()
    if count < 3 or float(x.std()) == 0:
        why = "the preconditioner is the same for every parameter" if count >= 3 else "the Hessian is zero"
        return RowNormCorrelation(Estimate.undefined(why), count, *points)
    value = _correlation(x, rows[:, used], exact=samples == 1)
    if samples == 1:
        slack = 1e-6
        return RowNormCorrelation(Estimate(value, value - slack, value + slack, "exact row norms"), count, *points)
    left_out = [_correlation(x, rows[torch.arange(samples) != j][:, used], exact=False) for j in range(samples)]
    spread = torch.tensor(left_out, dtype=torch.float64)
    error = math.sqrt((samples - 1) / samples * float((spread - spread.mean()).square().sum()))
    # Three standard errors, and more while few directions make the standard error itself uncertain.
    half = 3 * error * (1 + 2 / samples) + 1 / math.sqrt(count)
    how = f"row norms from {samples} random products, corrected for their noise; jackknife interval"
    estimate = Estimate(value, max(-1.0, value - half), min(1.0, value + half), how, CONFIDENCE)
    return RowNormCorrelation(estimate, count, *points)


def _correlation(x: Tensor, squared_rows: Tensor, *, exact: bool) -> float:
    y = squared_rows.mean(0).clamp_min(1e-300).log() / 2
    samples = len(squared_rows)
    noise = 0.0 if exact else float(torch.special.polygamma(1, torch.tensor(samples / 2, dtype=torch.float64))) / 4
    a, b = x - x.mean(), y - y.mean()
    variance = max(float(b.square().mean()) - noise, 1e-12)
    r = float((a * b).mean()) / math.sqrt(float(a.square().mean()) * variance)
    return max(-1.0, min(1.0, r))
