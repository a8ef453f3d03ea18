"""The charts of the page."""

from __future__ import annotations

import html
import math
from typing import Any

import torch

from wellcond.condition_numbers import Conditioning
from wellcond.display import number
from wellcond.examination import Measurements
from wellcond.report.chart import BOUND, FIRST, FOURTH, LOG, SECOND, THIRD, Chart, new_figure
from wellcond.report.figures import candidates, shown_spectra
from wellcond.report.layers import layers_chart
from wellcond.report.rates import rate_charts


def charts(m: Measurements) -> list[Chart]:
    """The charts that this examination has data for."""
    drawn = [_spectrum(m), layers_chart(m), _forecast(m), *rate_charts(m), _row_norms(m)]
    return [chart for chart in drawn if chart is not None]


def _spectrum(m: Measurements) -> Chart | None:
    spectra = shown_spectra(m)
    if not spectra:
        return None
    figure = new_figure()
    for role, (label, c) in zip((FIRST, SECOND), spectra.items(), strict=False):
        _add_counts(figure, role, label, c)
    *_, sees = spectra
    text = ""
    if m.edge is not None and m.edge.rate > 0:
        bound = m.edge.bound / m.edge.rate  # theory, section 2.3
        label = f"stability bound of {sees}"
        line = {"width": 2, "dash": "dash"}
        figure.add_scatter(x=[bound] * 2, y=[0.5, m.parameters], mode="lines", line=line, name=label, meta=BOUND)
        first = " of the first group" if m.edge.groups > 1 else ""
        text = (
            f" At the present learning rate{first} a step is stable along eigenvectors of {sees} whose eigenvalue is "
            f"under {number(bound)}, the dashed line."
        )
    whole = all(c.spectrum is not None for c in spectra.values())
    if not whole:
        text += " The truth lies in the band with probability 99.7 % at each point."
    figure.update_layout(xaxis={"title": "eigenvalue", **LOG}, yaxis={"title": "number of eigenvalues above", **LOG})
    table = [["fraction of the largest", *spectra]]
    for fraction in (0.1, 0.01, 1e-3, *((1e-4, 1e-6) if whole else ())):
        table.append([number(fraction), *(_count(c, fraction) for c in spectra.values())])
    table.append(["largest eigenvalue", *(c.largest.with_error() for c in spectra.values())])
    return Chart(
        "spectrum",
        "Spectrum: how many eigenvalues are larger than a given one",
        "The more of the climb is far to the left of a curve's end, the more directions are much flatter than the "
        f"steepest, which sets the learning rate.{text}",
        [figure],
        table,
    )


def _add_counts(figure: Any, role: str, label: str, c: Conditioning) -> None:
    """Down to what is known of a spectrum."""
    at = c.largest.value * torch.logspace(-8 if c.spectrum is not None else -3, 0, 161, dtype=torch.float64)
    # The largest eigenvalue itself counts, whatever the rounding of the product fraction · λ_max.
    x, (low_y, high_y) = at.tolist(), (n.clamp_min(0.5).tolist() for n in c.counts_above(at * (1 - 1e-12)))
    if c.spectrum is not None:
        line = {"shape": "hv", "width": 2.5}
        figure.add_scatter(x=x, y=low_y, mode="lines", line=line, name=label, meta=role)
        return
    edge = {"mode": "lines", "line": {"width": 1}, "meta": role, "legendgroup": role}
    figure.add_scatter(x=x, y=low_y, showlegend=False, hoverinfo="skip", **edge)
    figure.add_scatter(x=x, y=high_y, fill="tonexty", name=label, **edge)


def _count(c: Conditioning, fraction: float) -> str:
    low, high = (float(x[0]) for x in c.counts_above(torch.tensor([fraction * c.largest.value], dtype=torch.float64)))
    low, high = math.ceil(low - 1e-6), math.floor(high + 1e-6)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _forecast(m: Measurements) -> Chart | None:
    f = m.forecast
    if f is None:
        return None
    figure, named, steps = new_figure(), candidates(m), list(range(f.steps + 1))
    table = [["", "learning rate", "edge ratio", f"loss after {f.steps} steps", "trusted up to step"]]
    for role, (name, c) in zip((FIRST, SECOND, THIRD, FOURTH), f.curves.items(), strict=False):
        losses, end = c.losses.tolist(), c.trusted_steps  # plotly leaves a gap where a loss is not finite
        line: dict[str, Any] = {"meta": role, "mode": "lines", "legendgroup": role, "name": html.escape(named[name])}
        figure.add_scatter(x=steps[: end + 1], y=losses[: end + 1], line={"width": 2.5}, **line)
        line |= {"showlegend": False}
        figure.add_scatter(x=steps[end:], y=losses[end:], line={"width": 2, "dash": "dot"}, **line)
        line |= {"mode": "markers", "marker": {"size": 7, "symbol": "circle-open"}}
        figure.add_scatter(x=list(c.true_losses), y=list(c.true_losses.values()), **line)
        loss = "diverges" if c.diverges else number(float(c.losses[-1]))
        table.append([named[name], number(c.learning_rate), number(c.edge_ratio), loss, str(end)])
    low, high = f.window()
    figure.update_layout(
        xaxis={"title": "step from here", "range": [0, 1.03 * f.steps]}, yaxis={"title": "loss", "range": [low, high]}
    )
    best, trusted = f.best.name, f.ranking(max(1, min(c.trusted_steps for c in f.curves.values())))[0]
    judged = f"Predicted to win: {named[best]}."
    if trusted != best:
        judged = f"Ahead while all may be trusted: {named[trusted]}; at the end: {named[best]}."
    return Chart(
        "forecast",
        "Forecast: the loss of the next steps, by the quadratic model here",
        f"{judged} Solid while the true loss at the predicted parameters (circles) agrees, dotted beyond. Gradients "
        "of all the data, the preconditioner frozen, momentum from rest.",
        [figure],
        table,
    )


def _row_norms(m: Measurements) -> Chart | None:
    r = m.row_norms
    if r is None or not r.correlation.defined:
        return None
    figure, marker = new_figure(), {"size": 5, "opacity": 0.45}
    figure.add_scatter(x=r.row_norm.tolist(), y=r.root_v.tolist(), mode="markers", marker=marker, meta=FIRST)
    figure.update_layout(xaxis={"title": "row norm of H", **LOG}, yaxis={"title": "√v", **LOG}, showlegend=False)
    table = [["row norms of H", "median √v"]]
    for norms, roots in zip(*(x[r.row_norm.argsort()].tensor_split(5) for x in (r.row_norm, r.root_v)), strict=True):
        if len(norms):
            span = f"{number(float(norms[0]))} to {number(float(norms[-1]))}"
            table.append([span, number(float(roots.median()))])
    return Chart(
        "row-norms",
        "Does √v measure the Hessian's row norms?",
        f"Correlation of the logarithms over {r.used:,} parameters: {r.correlation}. The theory expects √v to grow "
        "with the norm of the parameter's row of the Hessian.",
        [figure],
        table,
    )
