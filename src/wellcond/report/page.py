"""An examination as one page that works offline.

`page` puts the words of an examination (findings, figures, notes) and its charts into one template. The charts come
first, each from the measurements alone (charts.py, layers.py, rates.py), as a figure of plotly and a table with the
same content. `render` (template.py) turns the figures into JSON and writes plotly itself and the theme into the page,
which fetches nothing; a monitor's page and the evidence's come from the same function and their own templates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from wellcond.display import number
from wellcond.examination import CURVATURES, Examination, Measurements, Severity, headline, interruption
from wellcond.linalg import CONFIDENCE
from wellcond.report.charts import charts
from wellcond.report.figures import rows, theta
from wellcond.report.template import render

SHOWN = 3
"""Findings that are told whole, the most useful ones; the others open when they are asked for, as good ones do."""


def verdict(severities: Iterable[Severity]) -> str:
    """The headline of a page with findings of these severities."""
    found = list(severities)
    if severe := found.count(Severity.SEVERE):
        return f"{severe} problem{'s' * (severe > 1)} found."
    return "Something to look at." if Severity.NOTICE in found else "Nothing stands out."


def page(examination: Examination) -> str:
    """The report as HTML: every script, style and figure inside, nothing fetched, all of the user's words escaped."""
    m = examination.measurements
    first = [f for f in examination.findings[:SHOWN] if f.severity > Severity.GOOD]
    return render(
        "page.html.j2",
        charts(m),
        of="examination",
        m=m,
        headline=headline(m),
        verdict=verdict(f.severity for f in examination.findings),
        interruption=interruption(examination.interrupted),
        severity=examination.severity.word,
        first=first,
        more=examination.findings[len(first) :],
        rows=list(rows(m)),
        theta=theta(m),
        # The smallest of a semidefinite matrix are rounding.
        eigenvalues=[(CURVATURES[k], c.top, c.bottom if k.startswith("hessian") else []) for k, c in m.figures.items()],
        facts=_facts(m),
        confidence=CONFIDENCE,
    )


def _facts(m: Measurements) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [
        ("loss", number(m.loss)),
        ("gradient norm", number(m.gradient_norm)),
        ("parameters", f"{m.parameters:,}"),
        ("examples", f"{m.examples:,}"),
    ]
    if m.edge is not None:
        facts += [("learning rate", number(m.edge.learning_rate)), ("edge ratio", number(m.edge.ratio.value))]
    if m.row_norms is not None and m.row_norms.correlation.defined:
        facts.append(("√v ~ row norms", number(m.row_norms.correlation.value)))
    return facts
