"""Whether two figures put things in the same order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def pairs_alike(x: Sequence[float], y: Sequence[float]) -> tuple[int, int]:
    """Pairs of things that x and y put in the same order, and pairs that both put in one; ties are in none.

    >>> pairs_alike([1, 2, 3], [10, 30, 20])
    (2, 3)
    """
    signs = [(x[i] - x[j]) * (y[i] - y[j]) for i, j in itertools.combinations(range(len(x)), 2)]
    return sum(s > 0 for s in signs), sum(s != 0 for s in signs)
