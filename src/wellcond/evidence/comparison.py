"""Whether one thing is above another: in order, and beyond chance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


def pairs_alike(x: Sequence[float], y: Sequence[float]) -> tuple[int, int]:
    """Pairs of things that x and y put in the same order, and pairs that both put in one; ties are in none.

    >>> pairs_alike([1, 2, 3], [10, 30, 20])
    (2, 3)
    """
    signs = [(x[i] - x[j]) * (y[i] - y[j]) for i, j in itertools.combinations(range(len(x)), 2)]
    return sum(s > 0 for s in signs), sum(s != 0 for s in signs)


def not_above_zero(values: np.ndarray) -> bool:
    """Whether the mean of the values, (seeds,), is at most two standard errors above zero.

    >>> not_above_zero(np.array([1.0, 3.0, -2.0])), not_above_zero(np.array([1.0, 1.0, 1.1]))
    (True, False)
    """
    return bool(values.mean() <= 2 * values.std(ddof=1) / len(values) ** 0.5)
