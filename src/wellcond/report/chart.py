"""A chart of a page: plotly's data and layout in plain dictionaries; the page's theme gives colors and fonts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

FIRST, SECOND, THIRD, FOURTH, BOUND, HEAT = "first", "second", "third", "fourth", "severe", "heat"
"""Roles of a series, as its `meta`; the page gives each its color in the light and in the dark theme."""


@dataclass(frozen=True)
class Chart:
    """A chart, and what it says to someone who can't see it.

    Attributes:
        key: names it in the page.
        title, description: plain text; the description says what is to be seen.
        figures: plotly's data and layout; several stand side by side where there is room.
        table: the same in words, rows of cells, the first row its headings.
        wide: whether it takes the page's whole width.
    """

    key: str
    title: str
    description: str
    figures: Sequence[dict[str, Any]]
    table: Sequence[Sequence[str]] = ()
    wide: bool = False

    @property
    def panels(self) -> list[tuple[str, dict[str, Any]]]:
        """Each figure with a key of its own."""
        return [(f"{self.key}-{i}" if i else self.key, figure) for i, figure in enumerate(self.figures)]


def plain(figure: go.Figure) -> dict[str, Any]:
    """A plotly figure as dictionaries, with the page's margins and legend; half the decades are named where it is
    narrow, unless its `meta` has another "narrow" layout."""
    if figure.layout.meta is None and isinstance(step := figure.layout.xaxis.dtick, int | float):
        figure.update_layout(meta={"narrow": {"xaxis": {"dtick": 2 * step}}})
    figure.update_layout(
        template="none",
        height=figure.layout.height or 400,
        margin={"l": 64, "r": 16, "t": 10, "b": 52},
        legend={"traceorder": "normal", "orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis_automargin=True,
        yaxis_automargin=True,
    )
    return json.loads(figure.to_json())


def ticks(values: Sequence[float]) -> dict[str, Any]:
    """Of a logarithmic axis: a label a decade, at most seven or so; 1, 2 and 5 within two decades."""
    logs = [math.log10(v) for v in values if v > 0 and math.isfinite(v)]
    decades = max(logs, default=0.0) - min(logs, default=0.0)
    return {"dtick": "D2" if decades < 2 else max(1, round(decades / 6)), "exponentformat": "power"}


def short(name: str, most: int = 30) -> str:
    """A layer's name in at most so many characters, its numbers and its last word kept as long as possible.

    >>> [short("model.encoder.layers.17.self_attn.out_proj", n) for n in (30, 14)]
    ['mod.enc.lay.17.sel.out_proj', '17.out_proj']
    >>> short("encoder_block_17.dense", 12)
    'enc17.dense'
    >>> short("a" * 50, 11)
    'aaaaa…aaaaa'
    """
    *path, last = name.split(".")
    for length in (12, 8, 5, 3, 2, 1, 0):
        if len(name) <= most:
            return name
        cut = [_cut(part, length) for part in path]
        name = ".".join([*(part for part in cut if part), last])
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def _cut(part: str, length: int) -> str:
    """The start of a part of a name, and the numbers of the rest."""
    return part[:length] + "_".join(re.findall(r"\d+", part[length:]))
