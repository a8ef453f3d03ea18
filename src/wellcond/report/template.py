"""Pages from templates: every script, style and figure inside, nothing fetched, all of the user's words escaped."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from wellcond.display import number
from wellcond.report.chart import Chart


def render(template: str, charts: Sequence[Chart], *, of: str, package: str = "wellcond.report", **context: Any) -> str:
    """A page from a template that extends base.html.j2.

    Args:
        template: its file in the package's templates.
        charts: placed by the macros of chart.html.j2.
        of: what the page is of, in a word.
        package: where the template is.
        context: for the template; `verdict`, `severity` (its word), `headline` and `facts` (name, value) for the base.
    """
    import jinja2  # both here, so that `import wellcond` does without
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(p, "templates") for p in (package, "wellcond.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        of=of,
        charts=charts,
        panels=[{"key": key, "figure": figure} for chart in charts for key, figure in chart.panels],
        plotly=get_plotlyjs() if charts else "",
        number=number,
        date=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        versions=f"wellcond {version('wellcond')}, torch {torch.__version__}",
        **context,
    )
