"""The evidence as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from wellcond.display import Table
from wellcond.evidence.claim import Claim
from wellcond.evidence.result import Evidence
from wellcond.report import STYLES


def print_table(evidence: Evidence, console: Console) -> None:
    """One line per case: claim and section, what was measured, its first figure ± spread over seeds, the verdict."""
    rows: list[list[str | Text]] = []
    for r in evidence.results:
        first, (_, style) = next(iter(r.claim.shown.values())), STYLES[r.verdict.severity]
        rows.append([Text(r.claim.name, "bold"), r.claim.source, first, "", Text(r.verdict, style)])
        for runs, held in zip(r.runs, r.held(), strict=True):
            rows.append(["", "", f"  {runs.case}", r.cells(runs)[0], "holds" if held else "does not hold"])
        rows += [["", "", Text(f"  {failure}", "red"), "", ""] for failure in r.failures]
    headings = ["claim", "section", "what was measured", "figure ± spread", "verdict"]
    console.print(Table(headings, rows, words=range(5)).terminal(fold=range(5)))
    console.print(Text(evidence.headline()))


def print_claims(claims: Sequence[Claim], console: Console) -> None:
    """Each claim, where it comes from, and the rule that decides."""
    for claim in claims:
        console.print(Text(claim.name, "bold"), Text(f"({claim.source})"))
        console.print(Text(claim.hypothesis))
        console.print(Text(f"Rule: {claim.rule}; in {', '.join(claim.cases)}."), end="\n\n")
