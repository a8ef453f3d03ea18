"""The charts of the page."""

from __future__ import annotations

import html
import math

import plotly.graph_objects as go
import torch

from wellcond.conditioning import Conditioning
from wellcond.examination.measurements import Measurements
from wellcond.linalg import number
from wellcond.report.chart import FIRST, SECOND, THIRD, Chart, plain, short, ticks
from wellcond.report.figures import CURVATURES


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
        [plain(figure)],
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
        [plain(figure)],
    )


def _layers(m: Measurements) -> Chart | None:
    layers = [layer for layer in m.layers if layer.kappa.defined][::-1]
    if not layers:
        return None
    names = [html.escape(short(layer.name or "(model)")) for layer in layers]
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
        xaxis={"type": "log", "title": "κ of its inputs", **ticks([v for s in series for v in s[-1]])},
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
        [plain(figure)],
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
        xaxis={"type": "log", "title": "row norm of H", **ticks(r.row_norm.tolist())},
        yaxis={"type": "log", "title": "√v", **ticks(r.root_v.tolist())},
        showlegend=False,
    )
    return Chart(
        "row-norms",
        "Does √v measure the Hessian's row norms?",
        f"Correlation of the logarithms over {r.used:,} parameters: {r.correlation}. The theory expects √v to grow "
        "with the norm of the parameter's row of the Hessian.",
        [plain(figure)],
    )
