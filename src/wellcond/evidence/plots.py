"""What the claims' plots have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wellcond.evidence.claim import Axes, Results


def key(ax: Axes, styles: Mapping[str, str]) -> None:
    """Entries of the legend that tell what a color, line or marker stands for: words → matplotlib's format."""
    for words, style in styles.items():
        ax.plot([], [], style, label=words)


def row_a_case(
    ax: Axes, results: Results, name: str, *, lower: float = 0.0, errors: float | None = None, **how: Any
) -> None:
    """The mean of a figure ± its spread, or so many standard errors, each case in a row of its own or a bit lower.

    A case whose runs have no such figure leaves its row empty.
    """
    has = {place: runs for place, runs in enumerate(results) if name in runs.figures[0]}
    means = [runs.mean(name) for runs in has.values()]
    spreads = [runs.spread(name) * (errors / len(runs.figures) ** 0.5 if errors else 1.0) for runs in has.values()]
    ax.errorbar(means, [place + lower for place in has], xerr=spreads, **how)
    ax.set_yticks(range(len(results)), [runs.case for runs in results], fontsize=7)
