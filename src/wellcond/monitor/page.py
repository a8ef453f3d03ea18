"""A history as one page that works offline."""

from __future__ import annotations

import datetime
from importlib.metadata import version
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from wellcond.linalg import number
from wellcond.monitor.charts import charts
from wellcond.monitor.history import History
from wellcond.monitor.record import FIGURES, NUMBERS

SHOWN = 200
"""Measurements in the table at most, spread over the run; the charts have all."""


def page(history: History) -> str:
    """The history as HTML: every script, style and figure inside, nothing fetched, all of the user's words escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wellcond.monitor", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    records = history.records
    apart = -(-len(records) // SHOWN) or 1
    return environment.get_template("monitor.html.j2").render(
        headline=headline(history),
        facts=_facts(history),
        standing=history.findings(),
        changes=[(record.step, change) for record in records for change in record.changes],
        failures=[record for record in records if record.failed is not None],
        jumps=[step for record in records for step in record.jumps],
        notes=list(dict.fromkeys(note for record in records for note in record.notes)),
        columns={**NUMBERS, **FIGURES},
        records=records[::-1][::apart][::-1],
        total=len(records),
        charts=charts(history),
        plotly=get_plotlyjs(),
        number=number,
        date=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        versions=f"wellcond {version('wellcond')}, torch {history.run.get('torch', 'unknown')}",
    )


def headline(history: History) -> str:
    """One line about what was monitored."""
    run = history.run
    state = "finished" if history.finished else "not finished"
    return (
        f"{run.get('model')}, {run.get('parameters', 0):,} parameters, {run.get('optimizer')}; looked at "
        f"{run.get('examples', 0):,} examples; {len(history)} measurements, {state}"
    )


def _facts(history: History) -> list[tuple[str, Any]]:
    """The last value of everything."""
    facts = []
    for name, label in {**NUMBERS, **FIGURES}.items():
        known = [r for r in history if name in r.numbers()]
        if known:
            last = known[-1]
            e = last.estimates().get(name)
            facts.append((label, str(e) if e is not None else number(last.numbers()[name])))
    if history.records:
        facts += [
            ("step", f"{history.records[-1].step:,}"),
            ("share of the time", f"{100 * history.records[-1].share:.2g} %"),
        ]
    return facts
