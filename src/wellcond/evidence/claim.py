"""A claim of the theory, the runs that decide it, and how runs are compared."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

Figures = Mapping[str, float | Sequence[float]]
"""What one run gave, by name: numbers, and curves."""

Axes = Any
"""Of matplotlib, which only the plots need."""


@dataclass(frozen=True)
class Runs:
    """The runs of one case, one per seed.

    >>> runs = Runs("digits, MLP", [{"ratio": 1.0, "loss": [3, 2]}, {"ratio": 3.0, "loss": [3, 1]}])
    >>> float(runs.mean("ratio")), round(float(runs.spread("ratio")), 2), runs["loss"].shape
    (2.0, 1.41, (2, 2))
    """

    case: str
    figures: Sequence[Figures]

    def __getitem__(self, name: str) -> np.ndarray:
        """A figure of every run: shape (seeds,), or (seeds, points) of a curve.

        In runs read from JSON infinity is "inf" and what is not defined is None, which numpy reads as we mean it.
        """
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
        source: sections of the theory, and what of the paper (arXiv 2410.00232) or others.
        cases: data and network, or the setting, each measured with every seed.
        shown: what `measure` returns and the table shows, name → in words; the first is the figure.
        size: of the plot, in inches.
    """

    source: ClassVar[str]
    cases: ClassVar[Sequence[str]]
    shown: ClassVar[Mapping[str, str]]
    size: ClassVar[tuple[float, float]] = (6.4, 3.2)

    @abstractmethod
    def holds(self, runs: Runs) -> bool:
        """The rule, on the runs of one case. A claim's own docstring here is the rule in words."""

    @abstractmethod
    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        """One run; the same for the same arguments, whatever ran before."""

    @abstractmethod
    def plot(self, results: Results, ax: Axes) -> None:
        """Draw the runs of all cases on matplotlib axes, units on them."""

    @property
    def name(self) -> str:
        """On the command line: that of the claim's file."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @property
    def hypothesis(self) -> str:
        """The claim in a sentence or two."""
        return " ".join((self.__doc__ or "").split())

    @property
    def rule(self) -> str:
        """What `holds` asks of the runs of a case, in words, as part of a sentence."""
        text = " ".join((self.holds.__doc__ or "").split())
        return text[:1].lower() + text[1:].removesuffix(".")


def crossed(*parts: Iterable[str], by: str = ": ") -> tuple[str, ...]:
    """Names of cases: each of the first parts with each of the next.

    >>> crossed(["digits", "wine"], ["Adam", "SGD"])
    ('digits: Adam', 'digits: SGD', 'wine: Adam', 'wine: SGD')
    """
    return tuple(by.join(names) for names in itertools.product(*parts))


def pairs_alike(points: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """Pairs of points (x, y) that x and y put in the same order, and pairs that both put in one; ties are in none.

    >>> pairs_alike([(1, 10), (2, 30), (3, 20)])
    (2, 3)
    """
    signs = [(a - c) * (b - d) for (a, b), (c, d) in itertools.combinations(points, 2)]
    return sum(s > 0 for s in signs), sum(s != 0 for s in signs)


def not_above_zero(values: np.ndarray) -> bool:
    """Whether the mean of the values, (seeds,), is at most two standard errors above zero.

    >>> not_above_zero(np.array([1.0, 3.0, -2.0])), not_above_zero(np.array([1.0, 1.0, 1.1]))
    (True, False)
    """
    return bool(values.mean() <= 2 * values.std(ddof=1) / len(values) ** 0.5)
