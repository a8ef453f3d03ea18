"""The evidence as one page that works offline."""

from __future__ import annotations

from collections import Counter

from wellcond.evidence.claim import Verdict
from wellcond.evidence.pictures import svg
from wellcond.evidence.result import Evidence

MARKS = {
    Verdict.SUPPORTED: "good",
    Verdict.MIXED: "notice",
    Verdict.NOT_SUPPORTED: "severe",
    Verdict.NOT_MEASURED: "severe",
}
"""The theme's color of each verdict."""


def page(evidence: Evidence) -> str:
    """Every claim with its rule, a table of its cases and its plot, as HTML.

    Raises:
        ModuleNotFoundError: without matplotlib (`pip install wellcond[evidence]`).
    """
    from wellcond.report import render

    counts = Counter(r.verdict for r in evidence.results)
    return render(
        "evidence.html.j2",
        (),
        of="evidence",
        package="wellcond.evidence",
        verdict=headline(evidence),
        severity="gone",
        headline="; ".join([*evidence.about.values(), *(["a quick run"] if evidence.quick else [])]),
        facts=[(verdict, counts[verdict]) for verdict in Verdict if counts[verdict]],
        evidence=evidence,
        marks=MARKS,
        pictures={r.claim.name: svg(r, themed=True) for r in evidence.results if r.runs},
    )


def pages(evidence: Evidence) -> dict[str, str]:
    """By file name, the page and every claim's picture, on white.

    Raises:
        ModuleNotFoundError: without matplotlib (`pip install wellcond[evidence]`).
    """
    pictures = {f"{r.claim.name}.svg": svg(r, themed=False) for r in evidence.results if r.runs}
    return {"evidence.html": page(evidence), **pictures}


def headline(evidence: Evidence) -> str:
    """How many claims came out how.

    >>> headline(Evidence([], quick=False, about={}))
    '0 claims'
    """
    counts = Counter(r.verdict for r in evidence.results)
    total = len(evidence.results)
    words = [f"{counts[v]} {v}" for v in Verdict if counts[v]]
    return ": ".join([f"{total} claim{'' if total == 1 else 's'}", *([", ".join(words)] if words else [])])
