"""A number with its error and its origin."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from wellcond.display import number, number_to_json

CONFIDENCE = 0.997
"""Probability with which an interval of this package holds that is not a proof: that of three standard errors."""


@dataclass(frozen=True)
class Estimate:
    """A figure, the interval it lies in, and how it was obtained.

    Attributes:
        value: the best single number; NaN where the figure is not defined.
        low: lower end of the interval.
        high: upper end; infinite where nothing bounds the figure from above ("at least `low`").
        how: the method in words, with the matrix-vector products it took.
        confidence: the probability that the interval holds; 1 where it is exact up to the rounding that it includes.
    """

    value: float
    low: float
    high: float
    how: str
    confidence: float = 1.0

    @classmethod
    def exactly(cls, value: float, how: str) -> Estimate:
        """A figure without an error."""
        return cls(float(value), float(value), float(value), how)

    @classmethod
    def undefined(cls, why: str) -> Estimate:
        """A figure that has no meaning here, with the reason."""
        return cls(math.nan, -math.inf, math.inf, why)

    @property
    def defined(self) -> bool:
        """Whether there is a number at all."""
        return not math.isnan(self.value)

    @property
    def unresolved(self) -> bool:
        """Whether only a lower end is known: to be read as "at least `low`"."""
        return self.defined and math.isinf(self.high)

    @property
    def certain(self) -> float:
        """The figure to judge by: its lower end where that is all that is known."""
        return self.low if self.unresolved else self.value

    def apart_from(self, other: Estimate) -> bool:
        """Whether both are defined and their intervals don't overlap."""
        return self.defined and other.defined and (self.low > other.high or other.low > self.high)

    def __contains__(self, x: float) -> bool:
        return self.low <= x <= self.high

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` > 0 times the figure."""
        return replace(self, value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def _repr_html_(self) -> str:
        return f'<span title="{html.escape(self.how)}">{html.escape(str(self))}</span>'

    def with_error(self) -> str:
        """The figure with its error bound where that is the same on both sides, else as `str` has it.

        >>> Estimate(12.3, 12.2, 12.4, "exact").with_error()
        '12.3 ± 0.1'
        """
        below, above = self.value - self.low, self.high - self.value
        if self.defined and math.isfinite(above) and abs(above - below) <= 0.01 * max(above, below):
            return f"{number(self.value)} ± {max(above, below):.1g}"
        return str(self)

    def to_json(self) -> dict[str, Any]:
        """As an object of docs/json.md: JSON has no infinity and no NaN, so "inf" and "-inf" are strings, and what is
        not defined is null.

        >>> Estimate(2.0, 1.0, math.inf, "lanczos").to_json()["high"]
        'inf'
        """
        ends = {end: number_to_json(getattr(self, end)) for end in ("value", "low", "high")}
        return {**ends, "confidence": self.confidence, "how": self.how}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Estimate:
        """What `to_json` wrote."""
        ends = {end: math.nan if written[end] is None else float(written[end]) for end in ("value", "low", "high")}
        return cls(**ends, how=str(written["how"]), confidence=float(written["confidence"]))

    def __str__(self) -> str:
        """The figure as a person reads it: with its interval, unless that is narrower than 1 %.

        >>> str(Estimate(12.3, 12.3, 12.3, "exact"))
        '12.3'
        >>> str(Estimate(12.3, 11.0, 13.0, "lanczos", 0.997))
        '12.3 (11 to 13)'
        >>> str(Estimate(12.3, 5.0, 50.0, "lanczos", 0.997))
        '5 to 50'
        >>> str(Estimate(40.0, 31.0, math.inf, "lanczos", 0.997))
        'at least 31'
        """
        if not self.defined:
            return "–"
        if math.isinf(self.value):
            return "infinite"
        if self.unresolved:
            return f"at least {number(self.low)}"
        value, low, high = number(self.value), number(self.low), number(self.high)
        if low == high or self.high - self.low <= 0.01 * abs(self.value):
            return value
        # A value in a wide interval would be read as more than it is.
        wide = self.low >= 0 and self.high > 3 * self.low
        return f"{low} to {high}" if wide else f"{value} ({low} to {high})"


def student(confidence: float, degrees: int) -> float:
    """How many estimated standard errors hold with a probability: Student's two-sided quantile, by its distribution
    function, which for the incomplete beta function needs only an integral over an angle.

    >>> round(student(0.95, 10), 2)
    2.23
    """
    angle = torch.linspace(0, math.pi / 2, 20001, dtype=torch.float64)[:-1]
    density = torch.cos(angle) ** (degrees - 1)
    share = torch.cumsum(density, 0) / density.sum()
    position = int((share < confidence).sum())
    return math.sqrt(degrees) * math.tan(float(angle[position]))


def jackknife(left_out: torch.Tensor) -> float:
    """Half the width of a figure's interval, with probability `CONFIDENCE`.

    Args:
        left_out: (k,), the figure without each of k samples.
    """
    k = len(left_out)
    error = math.sqrt((k - 1) / k * float((left_out - left_out.mean()).square().sum()))
    return student(CONFIDENCE, k - 1) * error
