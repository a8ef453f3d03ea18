"""The charts of the page, as plotly figures in plain dictionaries; colors and fonts are set by the page's theme."""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch

from wellcond.conditioning import Conditioning
from wellcond.examination.measurements import Measurements
from wellcond.linalg import number
from wellcond.report.figures import CURVATURES

FIRST, SECOND, THIRD = "first", "second", "third"
"""Roles of a series; the page gives each its color in the light and in the dark theme."""


@dataclass(frozen=True)
class Chart:
    """A chart with its title, what it says to someone who can't see it, and plotly's data and layout."""

    key: str
    title: str
    description: str
    figure: dict[str, Any]


def charts(m: Measurements) -> list[Chart]:
    """The charts that this examination has data for."""
    drawn = [_spectrum(m), _learning_rate(m), _layers(m), _row_norms(m)]
    return [chart for chart in drawn if chart is not None]


def _spectrum(m: Measurements) -> Chart | None:
    kind = "hessian" if m.settings.curvature == "hessian" else "gauss_newton"
    shown = {name: m.figures[name] for name in (kind, f"{kind}_preconditioned") if name in m.figures}
    shown = {name: c for name, c in shown.items() if c.largest.value > 0}
    if not shown:
        return None
    whole = all(c.spectrum is not None for c in shown.values())
    figure = go.Figure()
    for role, (name, c) in zip((FIRST, SECOND), shown.items(), strict=False):
        _add_counts(figure, role, CURVATURES[name], c, decades=8 if whole else 3)
    figure.update_layout(
        xaxis={
            "type": "log",
            "title": "eigenvalue ÷ largest eigenvalue",
            "dtick": 2 if whole else 1,
            "exponentformat": "power",
        },
        yaxis={"type": "log", "title": "number of eigenvalues above", "dtick": 1},
    )
    how = "exact" if whole else "the truth lies in the band with probability 99.7 % at each point"
    return Chart(
        "spectrum",
        "Spectrum: how many eigenvalues lie above a fraction of the largest",
        f"How many eigenvalues are left above a fraction of the largest ({how}). The more of the climb is far to the "
        "left, the more directions are much flatter than the steepest, which sets the learning rate.",
        _plain(figure),
    )


def _add_counts(figure: go.Figure, role: str, label: str, c: Conditioning, decades: int) -> None:
    fractions = torch.logspace(-decades, 0, 161, dtype=torch.float64)
    # The largest eigenvalue itself counts, whatever the rounding of the product fraction · λ_max.
    low, high = c.counts_above(fractions * c.largest.value * (1 - 1e-12))
    x, low_y, high_y = fractions.tolist(), low.clamp_min(0.5).tolist(), high.clamp_min(0.5).tolist()
    if c.spectrum is not None:
        line = {"shape": "hv", "width": 2.5}
        figure.add_scatter(x=x, y=low_y, mode="lines", line=line, name=label, meta=role)
        return
    edge = {"mode": "lines", "line": {"width": 1}, "meta": role, "legendgroup": role}
    figure.add_scatter(x=x, y=low_y, showlegend=False, hoverinfo="skip", **edge)
    figure.add_scatter(x=x, y=high_y, fill="tonexty", name=label, **edge)


def _learning_rate(m: Measurements) -> Chart | None:
    edge = m.edge
    if edge is None or not math.isfinite(edge.allowed.value) or edge.learning_rate <= 0:
        return None
    low, high = edge.allowed.low, edge.allowed.high
    right = 10 ** math.ceil(math.log10(max(edge.learning_rate, edge.allowed.value)) + 0.5)
    left = 10 ** math.floor(math.log10(min(edge.learning_rate, edge.allowed.value)) - 0.5)
    figure = go.Figure()
    figure.add_scatter(
        x=[edge.learning_rate],
        y=["now"],
        mode="markers",
        marker={"size": 16, "symbol": "diamond"},
        meta=FIRST,
        name=f"now, {number(edge.learning_rate)}",
    )
    figure.add_scatter(
        x=[edge.allowed.value],
        y=["allowed"],
        mode="markers",
        marker={"size": 16, "symbol": "line-ns-open", "line": {"width": 3}},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [min(high, right) - edge.allowed.value],
            "arrayminus": [edge.allowed.value - low],
        },
        meta=SECOND,
        name=f"largest stable, {number(edge.allowed.value)}",
    )
    figure.add_vrect(
        x0=edge.allowed.value,
        x1=right,
        line_width=0,
        fillcolor="rgba(220, 60, 60, 0.14)",
        annotation={"text": "unstable", "yref": "paper", "y": 0.5},
        annotation_position="inside right",
    )
    figure.update_layout(
        xaxis={
            "type": "log",
            "title": "learning rate",
            "range": [math.log10(left), math.log10(right)],
            "dtick": 1,
            "exponentformat": "power",
        },
        yaxis={"range": [-0.7, 1.7]},
        height=230,
    )
    return Chart(
        "learning-rate",
        "Learning rate: now, and the largest that is stable",
        f"The edge ratio is {edge.ratio}: the rate times the largest eigenvalue of PᵀHP, over the bound "
        f"{number(edge.bound)} of this optimizer's update.",
        _plain(figure),
    )


def _layers(m: Measurements) -> Chart | None:
    layers = [layer for layer in m.layers if layer.kappa.defined][::-1]
    if not layers:
        return None
    names = [html.escape(_short(layer.name or "(model)")) for layer in layers]
    figure = go.Figure()
    # Where they coincide all three stay visible: the first is a ring around the last.
    series = (
        (FIRST, "as it is", "circle-open", 17, [layer.kappa.value for layer in layers]),
        (THIRD, "centered", "triangle-up", 12, [layer.centered.value for layer in layers]),
        (SECOND, "standardized", "square", 6, [layer.standardized.value for layer in layers]),
    )
    for role, label, symbol, size, values in series:
        figure.add_scatter(
            x=[v if math.isfinite(v) else None for v in values],
            y=list(range(len(layers))),
            mode="markers",
            marker={"size": size, "symbol": symbol, "line": {"width": 3 if role == FIRST else 0}},
            name=label,
            meta=role,
        )
    figure.update_layout(
        xaxis={"type": "log", "title": "κ of its inputs", **_ticks([v for s in series for v in s[-1]])},
        yaxis={
            "tickmode": "array",
            "tickvals": list(range(len(layers))),
            "ticktext": names,
            "range": [-0.6, len(layers) - 0.4],
            "title": "layer",
        },
        height=170 + 34 * len(layers),
    )
    return Chart(
        "layers",
        "Layers: conditioning of what each one sees",
        "The condition number of the matrix of a layer's inputs, with the column of ones that its bias sees; what it "
        "would be without the mean (centered) and with batch normalization (standardized).",
        _plain(figure),
    )


def _row_norms(m: Measurements) -> Chart | None:
    r = m.row_norms
    if r is None or not r.correlation.defined:
        return None
    figure = go.Figure()
    figure.add_scatter(
        x=r.row_norm.tolist(),
        y=r.root_v.tolist(),
        mode="markers",
        marker={"size": 5, "opacity": 0.45},
        meta=FIRST,
    )
    figure.update_layout(
        xaxis={"type": "log", "title": "row norm of H", **_ticks(r.row_norm.tolist())},
        yaxis={"type": "log", "title": "√v", **_ticks(r.root_v.tolist())},
        showlegend=False,
    )
    return Chart(
        "row-norms",
        "Does √v measure the Hessian's row norms?",
        f"Correlation of the logarithms over {r.used:,} parameters: {r.correlation}. The theory expects √v to grow "
        "with the norm of the parameter's row of the Hessian.",
        _plain(figure),
    )


def _ticks(values: list[float]) -> dict[str, Any]:
    """A label a decade, at most seven or so; 1, 2 and 5 where there are less than two decades."""
    logs = [math.log10(v) for v in values if v > 0 and math.isfinite(v)]
    decades = max(logs, default=0.0) - min(logs, default=0.0)
    return {"dtick": "D2" if decades < 2 else max(1, round(decades / 6)), "exponentformat": "power"}


def _plain(figure: go.Figure) -> dict[str, Any]:
    figure.update_layout(
        template="none",
        height=figure.layout.height or 400,
        margin={"l": 70, "r": 20, "t": 10, "b": 56},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis_automargin=True,
        yaxis_automargin=True,
    )
    return json.loads(figure.to_json())


def _short(name: str, most: int = 36) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
