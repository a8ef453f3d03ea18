"""The charts of a history over its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wellcond.display import axes
from wellcond.monitor.history import History
from wellcond.monitor.record import LABELS, Record
from wellcond.report import BOUND, FIRST, LOG, SECOND, Chart, curves, new_figure

SHOWN = 200
"""Measurements in a table at most; the charts have all."""

_CHARTS = [
    (
        "edge",
        "Edge ratio",
        ("edge_ratio",),
        "The learning rate over the largest at which a step is stable: above 1, the dashed line, the steepest "
        "direction grows from step to step.",
    ),
    (
        "curvature",
        "Largest eigenvalue",
        ("largest_preconditioned", "largest"),
        "λ_max of the Hessian, and as the optimizer's preconditioner P leaves it.",
    ),
    (
        "kappa",
        "Conditioning",
        ("kappa_mean", "kappa_effective"),
        "Of the Gauss-Newton matrix under P: λ_max over the mean eigenvalue, κ̄, and what gradient descent feels, "
        "κ_eff; where nothing bounds a figure from above, its lower end; an infinite one is a gap.",
    ),
    (
        "loss",
        "Loss",
        ("loss",),
        "Observed in the step before the measurement; a cross marks where it had jumped since the one before.",
    ),
    ("rate", "Learning rate", ("learning_rate",), "Of the optimizer's first group."),
]


def charts(history: History) -> list[Chart]:
    """The charts that there are figures for."""
    drawn, latest = [], history.latest()
    for key, title, names, description in _CHARTS:
        known = [name for name in names if any(map(math.isfinite, history.series(name)[1]))]
        if known:
            last = "; ".join(f"{LABELS[name]} {latest[name]}" for name in known)
            figure = _figure(known, history)
            drawn.append(Chart(key, title, f"{description} Last: {last}.", [figure], _table(known, history)))
    return drawn


def plot(history: History, figure: str, ax: Any = None) -> Any:
    """Draw one figure over the steps on matplotlib axes; see `History.plot`."""
    if figure not in LABELS:
        raise ValueError(f"got figure={figure!r}; it is one of {', '.join(LABELS)}")
    names = [n for n in (figure, f"{figure}_preconditioned") if n in LABELS and history.series(n)[0]]
    ax = curves(_figure(names, history), axes(ax))
    ax.set_ylabel(LABELS[figure])
    return ax


def spread(records: Sequence[Record]) -> Sequence[Record]:
    """At most `SHOWN`, equally far apart, the last among them."""
    apart = -(-len(records) // SHOWN) or 1
    return records[::-1][::apart][::-1]


def _figure(names: Sequence[str], history: History) -> Any:
    figure, shown = new_figure(), []
    for role, mark, dash, name in zip((FIRST, SECOND), ("circle", "square"), ("solid", "dash"), names, strict=False):
        _add_band(figure, name, history, role)
        steps, values = history.series(name)
        shown += [v for v in values if math.isfinite(v)]
        figure.add_scatter(
            x=steps,
            y=values,
            mode="lines+markers",
            line={"width": 2, "dash": dash},
            marker={"size": 5, "symbol": mark},
            name=LABELS[name],
            meta=role,
        )
    if "edge_ratio" in names:
        ends, line = [0, history[-1].step], {"width": 2, "dash": "dash"}
        figure.add_scatter(x=ends, y=[1, 1], mode="lines", line=line, name="unstable above", meta=BOUND)
        shown.append(1.0)
    jumps = [(r.step, r.loss) for r in history if r.jumps and r.loss is not None and math.isfinite(r.loss)]
    if "loss" in names and jumps:
        at, high = zip(*jumps, strict=True)
        marker = {"size": 12, "symbol": "x"}
        figure.add_scatter(x=at, y=high, mode="markers", marker=marker, name="after a jump", meta=BOUND)
    axis = LOG if min(shown, default=0.0) > 0 else {"exponentformat": "power"}
    figure.update_layout(height=320, xaxis={"title": "step", "rangemode": "tozero"}, yaxis=axis)
    return figure


def _add_band(figure: Any, name: str, history: History, role: str) -> None:
    """The intervals, where both ends are known and a logarithmic axis has them."""
    steps, low, high = history.intervals(name)
    if len(steps) > 1 and min(low) > 0:
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "meta": role}
        figure.add_scatter(x=steps, y=low, **edge)
        figure.add_scatter(x=steps, y=high, fill="tonexty", **edge)


def _table(names: Sequence[str], history: History) -> list[list[str]]:
    known = [r for r in history if any(name in r.numbers() for name in names)]
    rows = [[f"{r.step:,}", *(r.texts().get(name, "–") for name in names)] for r in spread(known)]
    return [["step", *(LABELS[name] for name in names)], *rows]
