"""The charts of a history over its steps, as plotly's data and layout; the page sets colors and fonts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wellcond.linalg import number
from wellcond.monitor.history import History
from wellcond.monitor.record import FIGURES, NUMBERS

_LABELS = {**FIGURES, **NUMBERS}


@dataclass(frozen=True)
class Chart:
    """A chart: its key, title, what it says to someone who can't see it, and plotly's figure."""

    key: str
    title: str
    description: str
    figure: dict[str, Any]


_CHARTS = [
    (
        "edge",
        "Edge ratio",
        ("edge_ratio",),
        "The learning rate over the largest at which a step is stable: above 1, drawn as a line, the steepest "
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
        "κ_eff; where nothing bounds a figure from above, its lower end.",
    ),
    ("loss", "Loss", ("loss",), "Observed in the step before the measurement."),
    ("rate", "Learning rate", ("learning_rate",), "Of the optimizer's first group."),
]


def charts(history: History) -> list[Chart]:
    """The charts that there are figures for."""
    drawn = []
    for key, title, names, description in _CHARTS:
        series = {name: history.series(name) for name in names}
        series = {name: s for name, s in series.items() if any(math.isfinite(v) for v in s[1])}
        if series:
            last = "; ".join(f"{_LABELS[name]} last {number(values[-1])}" for name, (_, values) in series.items())
            drawn.append(Chart(key, title, f"{description} {last}.", _figure(key, series, history)))
    return drawn


def _figure(key: str, series: dict[str, tuple[list[int], list[float]]], history: History) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    for role, (name, (steps, values)) in zip(("first", "second"), series.items(), strict=False):
        if name in FIGURES:
            data += _band(name, history, role)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": steps,
                "y": [v if math.isfinite(v) else None for v in values],
                "name": _LABELS[name],
                "meta": role,
                "line": {"width": 2, "dash": "solid" if role == "first" else "dash"},
                "marker": {"size": 5, "symbol": "circle" if role == "first" else "square"},
            }
        )
    shown = [v for _, values in series.values() for v in values if math.isfinite(v)]
    layout: dict[str, Any] = {
        "height": 300,
        "margin": {"l": 60, "r": 12, "t": 8, "b": 48},
        "showlegend": len(series) > 1,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": {"title": {"text": "step"}, "automargin": True, "rangemode": "tozero"},
        "yaxis": {"automargin": True, "exponentformat": "power"},
    }
    if min(shown) > 0:
        layout["yaxis"] |= {"type": "log", "dtick": _tick(shown)}
    if key == "edge":
        layout["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "line": {"width": 1.5, "dash": "dot"}}
        ]
        layout["annotations"] = [
            {"xref": "paper", "x": 1, "y": 0, "yref": "y", "text": "unstable above 1", "showarrow": False}
            | {"xanchor": "right", "yanchor": "bottom"}
        ]
        # Annotations on a log axis are placed by their logarithm; the line has to be on the picture.
        if min(shown) > 0:
            low, high = math.log10(min(shown)), math.log10(max(shown))
            layout["yaxis"]["range"] = [min(low, 0) - 0.2, max(high, 0) + 0.3]
        else:
            layout["annotations"][0]["y"] = 1
    return {"data": data, "layout": layout}


def _band(name: str, history: History, role: str) -> list[dict[str, Any]]:
    """The intervals, where both ends are finite."""
    known = [(r.step, r.estimates()[name]) for r in history if name in r.estimates()]
    known = [(step, e) for step, e in known if math.isfinite(e.high - e.low)]
    if len(known) < 2 or any(e.low <= 0 for _, e in known):
        return []
    steps = [step for step, _ in known]
    edge = {"type": "scatter", "mode": "lines", "x": steps, "hoverinfo": "skip", "showlegend": False, "meta": role}
    return [
        {**edge, "y": [e.low for _, e in known], "line": {"width": 0}},
        {**edge, "y": [e.high for _, e in known], "line": {"width": 0}, "fill": "tonexty"},
    ]


def _tick(values: list[float]) -> str | int:
    """A label a decade, at most six or so; 1, 2 and 5 where there are less than two decades."""
    decades = math.log10(max(values)) - math.log10(min(values))
    return "D2" if decades < 2 else max(1, round(decades / 6))
