"""Whether two results of one run agree: what may differ between them is rounding, and no more than that."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rules:
    """How far two results may differ.

    Attributes:
        relative: a figure's change over its size, or over its natural scale where that is larger (`_SCALES`).
        inside: where more than 0, a figure may move so far in the interval that it had, over its size, and the ends of
            the interval may be anywhere.
        words: whether numbers in texts may differ.
    """

    relative: float
    inside: float = 0.0
    words: bool = False


FLOAT64 = Rules(1e-10)
"""With products perturbed by one unit in the last place no figure of the record moved by more than 5e-11."""

FLOAT32 = Rules(5e-3, inside=0.1, words=True)
"""An interval says how far rounding and chance may move its figure, and most move by less than 3 % with perturbed
products. Without an interval: rounding is 6e-8, and some ten steps of training and the products on top amplify it; with
perturbed products losses moved by up to 4e-4."""

ROUNDING = 1e-4
"""Relative width of an interval under which it holds nothing but rounding in float64. How wide it is was measured on
the products themselves, and is another number for another order of summation: the figure may move inside it, and the
ends by the width. κ*, over the eigenvalue that is nearest to rounding, has a wider one for the same reason."""

ZERO = 1e-9
"""In a text a number below this is rounding that was measured (“residual bound 3.1e-14”), and not compared."""

_EIGENVALUES = {"largest", "smallest", "eigenvalues"}
_SHARES = {"outside_range", "negative_fraction", "mean_share", "correlation", "negative_share"}
"""Parts of a whole, correlations: zero where nothing is left but rounding; their natural scale is 1."""

_COUNTED = ("kappa_50", "kappa_90", "kappa_star", "negative_fraction")
_COUNTED_WITHIN = 10.0
"""Of the eigenvalues above θ, which is rounding that was measured: in float32 these move farther in their interval."""

_FLOOR = 1e-3
"""Of the natural scale, times `relative`: with 1e-13 of λ_max an eigenvalue of a singular matrix is zero (it was
below 2e-14), and with 1e-13 a share (below 2e-13 where a mean was taken off before)."""

_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
_INTERVAL = re.compile(rf"(?:at least )?{_NUMBER}(?: \({_NUMBER} to {_NUMBER}\)| to {_NUMBER})?%?")


def differences(before: Any, now: Any, rules: Rules) -> list[str]:
    """What of two results does not agree: a line for each, with where it is."""
    return list(_differences(before, now, rules, "", 0.0))


def _differences(before: Any, now: Any, rules: Rules, where: str, scale: float) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        if before.keys() != now.keys():
            yield f"{where}: keys {sorted(before.keys() ^ now.keys())} are on one side only"
        elif {"value", "low", "high", "how"} <= before.keys():
            yield from _estimates(before, now, rules, where, scale)
        else:
            largest = _size(before.get("largest")) or scale
            for key in before:
                below = largest if key in _EIGENVALUES else 1.0 if key in _SHARES else scale
                yield from _differences(before[key], now[key], rules, f"{where}/{key}", below)
    elif isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            yield f"{where}: {len(before)} entries before, {len(now)} now"
        for i, (x, y) in enumerate(zip(before, now, strict=False)):
            name = x["key"] if isinstance(x, dict) and "key" in x else i
            yield from _differences(x, y, rules, f"{where}/{name}", scale)
    elif _is_whole(before) and _is_whole(now):
        # A search that stops at a tolerance may take a product more or less.
        if not _near(before, now, 2.0 + 0.02 * before if rules.inside and where.endswith("/products") else 0.0):
            yield f"{where}: {before} before, {now} now"
    elif _is_number(before) and _is_number(now):
        if not _near(before, now, _tolerance(before, rules, scale)):
            yield f"{where}: {before} before, {now} now"
    elif isinstance(before, str) and isinstance(now, str):
        if _read(before, rules) != _read(now, rules):
            yield f"{where}: {before!r} before, {now!r} now"
    elif type(before) is not type(now) or before != now:
        yield f"{where}: {before!r} before, {now!r} now"


def _estimates(before: Any, now: Any, rules: Rules, where: str, scale: float) -> Iterator[str]:
    value, low, high = (math.nan if before[k] is None else float(before[k]) for k in ("value", "low", "high"))
    new, new_low, new_high = (math.nan if now[k] is None else float(now[k]) for k in ("value", "low", "high"))
    tolerance = _tolerance(value, rules, scale)
    rounding = high - low <= ROUNDING * max(abs(value), scale) or where.endswith("kappa_star")
    width = high - low if rounding or rules.inside else 0.0
    farthest = math.inf
    if rules.inside:
        farthest = (_COUNTED_WITHIN if where.endswith(_COUNTED) else rules.inside) * max(abs(value), scale)
    inside = width and low - tolerance <= new <= high + tolerance and _near(value, new, farthest)
    if not (_near(value, new, tolerance) or inside):
        yield f"{where}: {value} in [{low}, {high}] before, {new} now"
    for end, x, y in (("low", low, new_low), ("high", high, new_high)):
        agree = math.isfinite(x) == math.isfinite(y) if rules.inside else _near(x, y, max(tolerance, width))
        if not agree:
            yield f"{where}/{end}: {x} before, {y} now"
    if not new_low <= new <= new_high and not math.isnan(new):
        yield f"{where}: {new} is not in its own interval, [{new_low}, {new_high}]"
    yield from _differences(before["confidence"], now["confidence"], rules, f"{where}/confidence", 0.0)
    yield from _differences(before["how"], now["how"], rules, f"{where}/how", 0.0)


def _tolerance(x: float, rules: Rules, scale: float) -> float:
    return max(rules.relative * abs(x), _FLOOR * rules.relative * scale) if math.isfinite(x) else 0.0


def _near(x: float, y: float, tolerance: float) -> bool:
    return x == y or (math.isnan(x) and math.isnan(y)) or abs(x - y) <= tolerance


def _size(estimate: Any) -> float:
    """|value| of an estimate; 0 of anything else."""
    value = estimate.get("value") if isinstance(estimate, dict) else None
    return abs(float(value)) if value is not None and math.isfinite(float(value)) else 0.0


def _is_whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _read(text: str, rules: Rules) -> str:
    """A text without what may differ in it: measured rounding, or, by the rules, every number with its interval."""
    if rules.words:
        return " ".join(_INTERVAL.sub("#", text).split())
    return re.sub(_NUMBER, lambda found: "0" if _is_rounding(found[0]) else found[0], text)


def _is_rounding(number: str) -> bool:
    return 0 < abs(float(number.replace(",", ""))) < ZERO
