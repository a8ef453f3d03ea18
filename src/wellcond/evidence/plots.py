"""What the claims' plots have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wellcond.evidence.claim import Axes, Results


def key(ax: Axes, styles: Mapping[str, str], **how: Any) -> None:
    """Entries of the legend that tell what a color, line or marker stands for: words → matplotlib's format."""
    for words, style in styles.items():
        ax.plot([], [], style, label=words, **how)


def row_a_case(
    ax: Axes, results: Results, name: str, *, lower: float = 0.0, errors: float | None = None, **how: Any
) -> None:
    """The mean of a figure ± its spread, or so many standard errors, each case in a row of its own or a bit lower.

    A case whose runs have no such figure leaves its row empty.
    """
    has = {place: runs for place, runs in enumerate(results) if name in runs.figures[0]}
    means, spreads = [r.mean(name) for r in has.values()], [r.spread(name) for r in has.values()]
    if errors is not None:
        spreads = [errors * x / len(r.figures) ** 0.5 for x, r in zip(spreads, has.values(), strict=True)]
    ax.errorbar(means, [place + lower for place in has], xerr=spreads, **how)
    ax.set_yticks(range(len(results)), [runs.case for runs in results], fontsize=7)
