"""A chart of a page: plotly's data and layout in plain dictionaries; the page's theme gives colors and fonts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

FIRST, SECOND, THIRD, FOURTH, BOUND, HEAT = "first", "second", "third", "fourth", "severe", "heat"
"""Roles of a series, as its `meta`; the page gives each its color in the light and in the dark theme."""

LOG = {"type": "log", "exponentformat": "power", "nticks": 4}
"""A logarithmic axis. With more ticks plotly labels every digit between two powers of ten, one over the other."""


@dataclass(frozen=True)
class Chart:
    """A chart, and what it says to someone who can't see it.

    Attributes:
        key: names it in the page.
        title, description: plain text; the description says what is to be seen.
        figures: of plotly; several stand side by side where there is room.
        table: the same in words, rows of cells, the first row its headings.
        wide: whether it takes the page's whole width.
    """

    key: str
    title: str
    description: str
    figures: Sequence[Any]
    table: Sequence[Sequence[str]] = ()
    wide: bool = False

    @cached_property
    def panels(self) -> list[tuple[str, dict[str, Any]]]:
        """Each figure as plotly's data and layout, with a key of its own."""
        return [(f"{self.key}-{i}" if i else self.key, _plain(figure)) for i, figure in enumerate(self.figures)]


def new_figure() -> Any:
    """An empty figure of plotly."""
    from plotly.graph_objects import Figure  # here, so that `import wellcond` does without

    return Figure()


def _plain(figure: Any) -> dict[str, Any]:
    """A figure as dictionaries, with the page's margins and legend."""
    figure.update_layout(
        template="none",
        height=figure.layout.height or 400,
        margin={"l": 64, "r": 16, "t": 10, "b": 52},
        legend={"traceorder": "normal", "orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis_automargin=True,
        yaxis_automargin=True,
    )
    return json.loads(figure.to_json())
