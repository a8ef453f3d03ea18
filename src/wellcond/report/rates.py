"""The charts of effective learning rates and of weight decay."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

from wellcond.display import number, short
from wellcond.examination import QUANTILES, Distribution, Histogram, Measurements
from wellcond.report.chart import FIRST, FOURTH, LOG, SECOND, THIRD, Chart, new_figure

KINDS = {
    "weight": (FIRST, "weights"),
    "bias": (SECOND, "biases"),
    "normalization": (THIRD, "normalization"),
    "embedding": (FOURTH, "embeddings"),
}
_5, _95 = QUANTILES.index(0.05), QUANTILES.index(0.95)


def rate_charts(m: Measurements) -> list[Chart]:
    """What differs between parameters: rates, rates along the network, decay."""
    s, drawn = m.step_sizes, []
    if s is None:
        return []
    rates = s.learning_rate.parameters
    slowest, fastest = min(d.quantiles[0] for d in rates), max(d.quantiles[-1] for d in rates)
    if fastest > 1.01 * slowest:
        text = "αP², the learning rate that a coordinate of the gradient is multiplied with in a step, momentum aside"
        drawn.append(_histogram("rates", "Effective learning rates", "learning rate αP²", text, s.learning_rate))
        drawn.append(_profile(rates))
    if s.decay.edges:
        title, axis = "Weight decay that parameters really get", "fraction of itself that is lost in a step"
        text = "What weight decay takes off a coordinate in a step, as a fraction of it"
        drawn.append(_histogram("decay", title, axis, text, s.decay))
    return drawn


def _histogram(key: str, title: str, axis: str, text: str, histogram: Histogram) -> Chart:
    figure, edges, parameters = new_figure(), histogram.edges, histogram.parameters
    widths = [b - a for a, b in itertools.pairwise(edges)]
    ranges = [f"{number(a)} to {number(b)}" for a, b in itertools.pairwise(edges)]
    for kind, (role, label) in KINDS.items():
        counts = _total([d for d in parameters if d.kind == kind])
        if counts:
            hover = "%{customdata}: %{y:,} " + label + "<extra></extra>"
            bars = {"x": edges[:-1], "y": counts, "offset": 0, "width": widths, "customdata": ranges}
            figure.add_bar(**bars, hovertemplate=hover, name=label, meta=role)
    figure.update_layout(
        barmode="stack",
        xaxis={"title": axis, **LOG},
        yaxis={"title": "number of parameters", "exponentformat": "SI"},
    )
    up_to = list(itertools.accumulate(_total(parameters)))
    low, high = (next(i for i, n in enumerate(up_to) if n >= share * up_to[-1]) for share in (0.05, 0.95))
    what = f"{text}: 90 % of the parameters between {number(edges[low])} and {number(edges[high + 1])}."
    if len(edges) == 2:
        what = f"{text}: {number(parameters[0].median)} for every one."
    if none := sum(d.entries - sum(d.counts) for d in parameters):
        what += f" {none:,} parameters get none and are not drawn."
    table = [["parameter", "kind", "entries", "5 %", "median", "95 %"]]
    table += [[d.parameter, d.kind, f"{d.entries:,}", *_spread(d)] for d in parameters]
    return Chart(key, title, what, [figure], table)


def _total(parameters: Sequence[Distribution]) -> list[int]:
    """Histogram counts summed over some parameters."""
    return [sum(counts) for counts in zip(*(d.counts for d in parameters), strict=True)]


def _spread(d: Distribution) -> list[str]:
    """The 5 % point, the median and the 95 % point."""
    return [number(x) for x in (d.quantiles[_5], d.median, d.quantiles[_95])]


def _profile(rates: Sequence[Distribution]) -> Chart:
    figure = new_figure()
    x, names = list(range(len(rates))), [html.escape(d.parameter) for d in rates]
    edge: dict[str, Any] = {"mode": "lines", "line": {"width": 0.5}, "meta": FIRST, "hoverinfo": "skip"}
    figure.add_scatter(x=x, y=[d.quantiles[_5] for d in rates], showlegend=False, **edge)
    figure.add_scatter(x=x, y=[d.quantiles[_95] for d in rates], fill="tonexty", name="5 to 95 %", **edge)
    figure.add_scatter(
        x=x,
        y=[d.median for d in rates],
        mode="lines+markers",
        marker={"size": 6 if len(rates) <= 60 else 3},
        name="median",
        meta=FIRST,
        customdata=names,
        hovertemplate="%{customdata}: %{y:.3g}<extra></extra>",
    )
    axis: dict[str, Any] = {"title": "parameter, in the order of the network", "range": [-0.5, len(rates) - 0.5]}
    if len(rates) <= 16:
        labels = [html.escape(short(d.parameter, 16)) for d in rates]
        axis |= {"title": "parameter", "tickvals": x, "ticktext": labels}
    figure.update_layout(xaxis=axis, yaxis={"title": "learning rate αP²", **LOG})
    fastest, slowest = max(rates, key=lambda d: d.median), min(rates, key=lambda d: d.median)
    table = [["parameter", "5 %", "median", "95 %"], *([d.parameter, *_spread(d)] for d in rates)]
    return Chart(
        "rates-by-parameter",
        "Effective learning rates along the network",
        "The median of each parameter's entries, with the band of their 5 and 95 % points. Largest in "
        f"“{fastest.parameter}” ({number(fastest.median)}), smallest in “{slowest.parameter}” "
        f"({number(slowest.median)}).",
        [figure],
        table,
    )
