"""The evidence as one page that works offline, and its pictures."""

from __future__ import annotations

from wellcond.evidence.plots import svg
from wellcond.evidence.result import Evidence
from wellcond.report import render


def pages(evidence: Evidence) -> dict[str, str]:
    """By file name: a page with every claim's rule, a table of its cases and its plot; each plot by itself, on white.

    Raises:
        ModuleNotFoundError: without matplotlib (`pip install wellcond[evidence]`).
    """
    drawn = [r for r in evidence.results if r.runs]
    page = render(
        "evidence.html.j2",
        (),
        of="evidence",
        package="wellcond.evidence",
        verdict=evidence.headline(),
        severity="gone",
        headline="; ".join([*evidence.about.values(), *(["a quick run"] if evidence.quick else [])]),
        facts=list(evidence.counts().items()),
        evidence=evidence,
        pictures={r.claim.name: svg(r.claim, r.runs, themed=True) for r in drawn},
    )
    return {"evidence.html": page} | {f"{r.claim.name}.svg": svg(r.claim, r.runs, themed=False) for r in drawn}
