"""A history as one page that works offline."""

from __future__ import annotations

from wellcond.display import number
from wellcond.examination import Severity
from wellcond.linalg import CONFIDENCE
from wellcond.monitor.charts import charts, spread
from wellcond.monitor.history import History
from wellcond.monitor.record import LABELS
from wellcond.report import render, verdict


def page(history: History) -> str:
    """The history as HTML: every script, style and figure inside, nothing fetched, all of the user's words escaped."""
    records, run = history.records, history.run
    measured = any(record.failed is None for record in records)
    failures: dict[str, list[int]] = {}
    for record in records:
        if record.failed is not None:
            failures.setdefault(record.failed, []).append(record.step)
    return render(
        "monitor.html.j2",
        charts(history),
        of="monitor",
        package="wellcond.monitor",
        headline=history.headline,
        verdict=verdict(Severity.of(s) for s, _ in history.findings().values()) if measured else history.unmeasured,
        severity=history.severity.word if measured else "gone",
        facts=[*_progress(history), *((LABELS[name], text) for name, text in history.latest().items())],
        standing=history.findings(),
        since={change.key: record.step for record in records for change in record.changes},
        changes=[(record.step, change) for record in reversed(records) for change in record.changes],
        failures=failures,
        jumps=[step for record in records for step in record.jumps],
        notes=list(dict.fromkeys(note for record in records for note in record.notes)),
        records=spread(records),
        total=len(records),
        run=run,
        confidence=CONFIDENCE,
    )


def _progress(history: History) -> list[tuple[str, str]]:
    """How far the run is, and what the monitor took."""
    if not history.records:
        return []
    last = history[-1]
    return [
        ("step", f"{last.step:,}"),
        ("measurements", f"{len(history):,}"),
        ("share of the time", f"{number(100 * last.share)} %"),
    ]
