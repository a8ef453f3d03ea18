"""A figure of a history, for a paper."""

from __future__ import annotations

from typing import Any

from wellcond.display import axes
from wellcond.monitor.history import History
from wellcond.monitor.record import FIGURES, LABELS

DRAWN = {"largest": ("largest", "largest_preconditioned")}
"""Figures that are drawn together."""


def plot(history: History, figure: str, ax: Any = None) -> Any:
    """Draw one figure over the steps; see `History.plot`."""
    if figure not in LABELS:
        raise ValueError(f"got figure={figure!r}; it is one of {', '.join(LABELS)}")
    ax = axes(ax)
    positive = True
    for name in DRAWN.get(figure, (figure,)):
        steps, values = history.series(name)
        if not steps:
            continue
        (line,) = ax.plot(steps, values, marker="o", markersize=3, linewidth=1.6, label=LABELS[name])
        positive = positive and all(v > 0 for v in values)
        if name in FIGURES:
            ax.fill_between(*history.intervals(name), color=line.get_color(), alpha=0.2, linewidth=0)
    if figure == "edge_ratio":
        ax.axhline(1, color="0.4", linestyle="--", linewidth=1)
    if positive:
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel=LABELS[figure])
    if figure in DRAWN:
        ax.legend(frameon=False)
    return ax
