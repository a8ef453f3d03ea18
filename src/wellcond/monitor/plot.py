"""A figure of a history, for a paper."""

from __future__ import annotations

import math
from typing import Any

from wellcond.linalg.axes import axes
from wellcond.monitor.history import History
from wellcond.monitor.record import FIGURES, NUMBERS

DRAWN = {"largest": ("largest", "largest_preconditioned")}
"""Figures that are drawn together."""


def plot(history: History, ax: Any = None, figure: str = "edge_ratio") -> Any:
    """Draw one figure over the steps; see `Monitor.plot`."""
    known = {**FIGURES, **NUMBERS}
    if figure not in known:
        raise ValueError(f"got figure={figure!r}; it is one of {', '.join(known)}")
    ax = axes(ax)
    positive = True
    for name in DRAWN.get(figure, (figure,)):
        steps, values = history.series(name)
        if not steps:
            continue
        (line,) = ax.plot(steps, values, marker="o", markersize=3, linewidth=1.6, label=known[name])
        positive = positive and all(v > 0 for v in values)
        if name in FIGURES:
            estimates = [r.estimates()[name] for r in history if name in r.estimates()]
            bounded = [(s, e) for s, e in zip(steps, estimates, strict=True) if math.isfinite(e.high - e.low)]
            ax.fill_between(
                [s for s, _ in bounded],
                [e.low for _, e in bounded],
                [e.high for _, e in bounded],
                color=line.get_color(),
                alpha=0.2,
                linewidth=0,
            )
    if figure == "edge_ratio":
        ax.axhline(1, color="0.4", linestyle="--", linewidth=1)
    if positive:
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel=known[figure])
    if figure in DRAWN:
        ax.legend(frameon=False)
    return ax
