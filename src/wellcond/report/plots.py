"""The page's charts on matplotlib axes: what plotly draws is drawn again, trace by trace."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from wellcond.display import axes
from wellcond.examination import Examination
from wellcond.report.chart import BOUND, FIRST, FOURTH, SECOND, THIRD
from wellcond.report.charts import charts

COLORS = {FIRST: "#2860c8", SECOND: "#c84f14", THIRD: "#1e8a6a", FOURTH: "#8a4fb5", BOUND: "#c0282d"}
DASHES = {"dash": "--", "dot": ":"}


def plot(examination: Examination, which: str, ax: Any = None) -> Any:
    """See `Examination.plot`."""
    drawn = {chart.key.replace("-", " "): chart.figures for chart in charts(examination.measurements)}
    if which not in drawn:
        raise ValueError(f"this examination has no data for {which!r}; there are {', '.join(drawn)}")
    return _map(drawn[which], ax) if which == "layers" else curves(drawn[which][0], axes(ax))


def curves(figure: Any, ax: Any) -> Any:
    """Draw the traces of a figure of plotly, bars and lines, on matplotlib axes."""
    below: Any = 0.0
    for last, trace in itertools.pairwise([None, *figure.data]):
        label = None if trace.showlegend is False or not trace.name else html.unescape(trace.name)
        look = {"color": COLORS[trace.meta], "label": label}
        if trace.type == "bar":
            ax.bar(trace.x, trace.y, trace.width, below, align="edge", **look)
            below = np.add(below, trace.y)
        elif trace.fill == "tonexty":
            ax.fill_between(trace.x, last.y, trace.y, alpha=0.35, linewidth=0, **look)
        elif trace.line.width != 0:
            look["linestyle"] = DASHES.get(trace.line.dash, "-") if "lines" in trace.mode else "none"
            look["drawstyle"] = "steps-post" if trace.line.shape == "hv" else "default"
            look["marker"] = "o" if "markers" in trace.mode else "none"
            ax.plot(trace.x, trace.y, fillstyle="none", markersize=4, **look)
    for side, axis in (("x", figure.layout.xaxis), ("y", figure.layout.yaxis)):
        ax.set(**{f"{side}label": axis.title.text, f"{side}scale": axis.type or "linear"})
        if axis.range:
            ax.set(**{f"{side}lim": axis.range})
        if axis.ticktext:
            ax.set(**{f"{side}ticks": axis.tickvals, f"{side}ticklabels": map(html.unescape, axis.ticktext)})
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False)
    return ax


def _map(panels: Sequence[Any], ax: Any) -> Any:
    """The heat map of the layers, its panels one below the other."""
    traces = [panel.data[0] for panel in panels]
    levels, texts = ([row for trace in traces for row in trace[key]] for key in ("z", "text"))
    ax, top = axes(ax, size=(7.0, 1.4 + 0.24 * len(levels))), traces[0].zmax
    shown = ax.imshow(levels, cmap="YlOrRd", vmin=0, vmax=top, aspect="auto")
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            color = "white" if levels[i][j] > 0.6 * top else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
    headings = [heading.replace("<br>", "\n") for heading in panels[0].layout.xaxis.ticktext]
    ax.set_xticks(range(len(headings)), headings)
    names = [html.unescape(name) for panel in panels for name in panel.layout.yaxis.ticktext]
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.figure.colorbar(shown, ax=ax, label="log₁₀ κ of the layer's inputs")
    return ax
