"""A claim of the theory, and the runs that decide it."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np

Figures = Mapping[str, float | Sequence[float]]
"""What one run gave, by name: numbers, and curves."""

Axes = Any
"""Of matplotlib, which only the plots need."""


class Verdict(StrEnum):
    """What the runs say of a claim: it held in every case, in some, in none; or a run failed."""

    SUPPORTED = "supported"
    MIXED = "mixed"
    NOT_SUPPORTED = "not supported"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Runs:
    """The runs of one case, one a seed.

    >>> runs = Runs("digits, MLP", [{"ratio": 1.0, "loss": [3, 2]}, {"ratio": 3.0, "loss": [3, 1]}])
    >>> float(runs.mean("ratio")), round(float(runs.spread("ratio")), 2), runs["loss"].shape
    (2.0, 1.41, (2, 2))
    """

    case: str
    figures: Sequence[Figures]

    def __getitem__(self, name: str) -> np.ndarray:
        """A figure of every run: shape (seeds,), or (seeds, points) of a curve."""
        return np.array([run[name] for run in self.figures], dtype=float)

    def mean(self, name: str) -> Any:
        """Over seeds: a number, or an array of a curve's points."""
        return self[name].mean(0)[()]

    def geometric_mean(self, name: str) -> float:
        """Over seeds, of a positive number."""
        return float(np.exp(np.log(self[name]).mean()))

    def spread(self, name: str) -> Any:
        """Standard deviation over seeds; 0 of a single run."""
        values = self[name]
        return values.std(0, ddof=1)[()] if len(values) > 1 else np.zeros(values.shape[1:])[()]


Results = Sequence[Runs]
"""The runs of every case of a claim."""


class Claim(ABC):
    """A claim: its hypothesis (the class's docstring), the rule that decides, the experiment, the plot.

    Attributes:
        name: on the command line.
        source: sections of the theory, and what of the paper (arXiv 2410.00232) or others.
        rule: in words, what `holds` asks of the runs of a case; a claim is supported if it holds in every case, not
            supported if in none, else mixed.
        cases: data and network, or the setting, each measured with every seed.
        shown: what `measure` returns and the table shows, name → in words; the first is the figure.
        seeds: runs of each case.
        size: of the plot, in inches.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    rule: ClassVar[str]
    cases: ClassVar[Sequence[str]]
    shown: ClassVar[Mapping[str, str]]
    seeds: ClassVar[int] = 5
    size: ClassVar[tuple[float, float]] = (6.4, 3.2)

    @property
    def hypothesis(self) -> str:
        """The claim in a sentence or two."""
        return " ".join((self.__doc__ or "").split())

    @abstractmethod
    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        """One run; the same for the same arguments, whatever ran before."""

    @abstractmethod
    def holds(self, runs: Runs) -> bool:
        """The rule, on one case."""

    @abstractmethod
    def plot(self, results: Results, ax: Axes) -> None:
        """Draw the runs of all cases on matplotlib axes, units on them."""

    def verdict(self, results: Results) -> Verdict:
        """What the cases say together."""
        held = [self.holds(runs) for runs in results]
        if all(held):
            return Verdict.SUPPORTED
        return Verdict.MIXED if any(held) else Verdict.NOT_SUPPORTED


def crossed(*parts: Iterable[str], by: str = ": ") -> tuple[str, ...]:
    """Names of cases: each of the first parts with each of the next.

    >>> crossed(["digits", "wine"], ["Adam", "SGD"])
    ('digits: Adam', 'digits: SGD', 'wine: Adam', 'wine: SGD')
    """
    return tuple(by.join(names) for names in itertools.product(*parts))
