"""The charts of effective learning rates and of weight decay."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from typing import Any

from wellcond.display import number, short
from wellcond.examination import QUANTILES, Distribution, Measurements
from wellcond.report.chart import FIRST, FOURTH, SECOND, THIRD, Chart, new_figure

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
    if spread(s.rates):
        text = "αP², the learning rate that a coordinate of the gradient is multiplied with in a step, momentum aside"
        drawn += [
            _histogram("rates", "Effective learning rates", "learning rate αP²", text, s.rate_edges, s.rates),
            _profile(s.rates),
        ]
    if any(d.quantiles[-1] > 0 for d in s.decays):
        title, axis = "Weight decay that parameters really get", "fraction of itself that is lost in a step"
        text = "What weight decay takes off a coordinate in a step, as a fraction of it"
        drawn.append(_histogram("decay", title, axis, text, s.decay_edges, s.decays))
    return drawn


def spread(distributions: Sequence[Distribution]) -> bool:
    """Whether parameters differ by more than 1 %."""
    low, high = min(d.quantiles[0] for d in distributions), max(d.quantiles[-1] for d in distributions)
    return high > 1.01 * low


def by_kind(distributions: Sequence[Distribution]) -> dict[str, list[int]]:
    """Histogram counts summed over the parameters of each kind."""
    kinds = [kind for kind in KINDS if any(d.kind == kind for d in distributions)]
    return {k: [sum(c) for c in zip(*(d.counts for d in distributions if d.kind == k), strict=True)] for k in kinds}


def _histogram(
    key: str, title: str, axis: str, text: str, edges: Sequence[float], distributions: Sequence[Distribution]
) -> Chart:
    figure = new_figure()
    logs = [math.log10(x) for x in edges]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(logs)]
    ranges = [f"{number(a)} to {number(b)}" for a, b in itertools.pairwise(edges)]
    for kind, counts in by_kind(distributions).items():
        role, label = KINDS[kind]
        hover = "%{customdata}: %{y:,} " + label + "<extra></extra>"
        figure.add_bar(x=middles, y=counts, customdata=ranges, hovertemplate=hover, name=label, meta=role)
    figure.update_layout(
        barmode="stack",
        bargap=0,
        xaxis={"title": axis, **_decades(logs[0], logs[-1])},
        yaxis={"title": "number of parameters", "exponentformat": "SI"},
    )
    low, high = (within(edges, distributions, share) for share in (0.05, 0.95))
    what = f"{text}: 90 % of the parameters between {number(low[0])} and {number(high[1])}."
    if len(edges) == 2:
        what = f"{text}: {number(distributions[0].median)} for every one."
    if none := sum(d.size - sum(d.counts) for d in distributions):
        what += f" {none:,} parameters get none and are not drawn."
    table = [["parameter", "kind", "entries", "5 %", "median", "95 %"]]
    table += [[d.name, d.kind, f"{d.size:,}", *_spread(d)] for d in distributions]
    return Chart(key, title, what, [figure], table)


def _spread(d: Distribution) -> list[str]:
    """The 5 % point, the median and the 95 % point."""
    return [number(x) for x in (d.quantiles[_5], d.median, d.quantiles[_95])]


def within(edges: Sequence[float], distributions: Sequence[Distribution], share: float) -> tuple[float, float]:
    """The edges of the bin under whose end this share of all parameters lies."""
    totals = list(itertools.accumulate(sum(column) for column in zip(*(d.counts for d in distributions), strict=True)))
    i = next(i for i, n in enumerate(totals) if n >= share * totals[-1])
    return edges[i], edges[i + 1]


def _profile(rates: Sequence[Distribution]) -> Chart:
    figure = new_figure()
    x, names = list(range(len(rates))), [html.escape(d.name) for d in rates]
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
        labels = [html.escape(short(d.name, 16)) for d in rates]
        axis |= {"title": "parameter", "tickmode": "array", "tickvals": x, "ticktext": labels}
    figure.update_layout(xaxis=axis, yaxis={"type": "log", "title": "learning rate αP²", "exponentformat": "power"})
    fastest, slowest = max(rates, key=lambda d: d.median), min(rates, key=lambda d: d.median)
    table = [["parameter", "5 %", "median", "95 %"], *([d.name, *_spread(d)] for d in rates)]
    return Chart(
        "rates-by-parameter",
        "Effective learning rates along the network",
        "The median of each parameter's entries, with the band of their 5 and 95 % points. Largest in "
        f"“{fastest.name}” ({number(fastest.median)}), smallest in “{slowest.name}” ({number(slowest.median)}).",
        [figure],
        table,
    )


def _decades(low: float, high: float) -> dict[str, Any]:
    """Ticks of an axis that shows logarithms."""
    step = max(1, round((high - low) / 6))
    if high - low < 2:
        at = [k + math.log10(d) for k in range(math.floor(low), math.ceil(high) + 1) for d in (1, 2, 5)]
        at = [x for x in at if low - 0.1 <= x <= high + 0.1] or [(low + high) / 2]
    else:
        at = [float(k) for k in range(math.floor(low), math.ceil(high) + 1, step)]
    return {"tickmode": "array", "tickvals": at, "ticktext": [number(10**x) for x in at]}
