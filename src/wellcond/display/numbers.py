"""How numbers are written, for a reader and in JSON."""

from __future__ import annotations

import math


def number(x: float) -> str:
    """Three significant digits: plain between 0.001 and a million, with thousands apart, else with an exponent.

    >>> [number(x) for x in (0.0, 1234567.0, 93412.0, 3.14159, -0.5, 2e-5)]
    ['0', '1.23e+06', '93,400', '3.14', '-0.5', '2e-05']
    """
    if not math.isfinite(x):
        return str(x)
    rounded = float(f"{x:.3g}")
    if rounded != 0 and not 1e-3 <= abs(rounded) < 1e6:
        return f"{rounded:.3g}"
    return f"{rounded:,.10g}"


def number_to_json(x: float) -> float | str | None:
    """A number for JSON, which has no infinity and no NaN.

    >>> [number_to_json(x) for x in (1.5, -math.inf, math.nan)]
    [1.5, '-inf', None]
    """
    if math.isnan(x):
        return None
    return x if math.isfinite(x) else ("inf" if x > 0 else "-inf")
