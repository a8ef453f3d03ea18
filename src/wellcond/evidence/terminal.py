"""The evidence as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wellcond.evidence.claim import Claim
from wellcond.evidence.result import Evidence, Verdict

_STYLES = {
    Verdict.SUPPORTED: "green",
    Verdict.MIXED: "yellow",
    Verdict.NOT_SUPPORTED: "red",
    Verdict.NOT_MEASURED: "red bold",
}


def print_table(evidence: Evidence, console: Console) -> None:
    """One line per case: claim and section, what was measured, its first figure ± spread over seeds, the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("claim", "section", "what was measured", "figure ± spread", "verdict"):
        table.add_column(heading, overflow="fold")
    for r in evidence.results:
        first = next(iter(r.claim.shown.values()))
        cells: list[Text | str] = [Text(r.claim.name, "bold"), r.claim.source, first, ""]
        table.add_row(*cells, Text(r.verdict, _STYLES[r.verdict]))
        for runs, held in zip(r.runs, r.held(), strict=True):
            table.add_row("", "", f"  {runs.case}", r.cells(runs)[0], "holds" if held else "does not hold")
        for failure in r.failures:
            table.add_row("", "", Text(f"  {failure}", "red"), "", "")
    console.print(table)
    console.print(Text(evidence.headline()))


def print_claims(claims: Sequence[Claim], console: Console) -> None:
    """Each claim, where it comes from, and the rule that decides."""
    for claim in claims:
        console.print(Text(claim.name, "bold"), Text(f"({claim.source})"))
        console.print(Text(claim.hypothesis))
        console.print(Text(f"Rule: {claim.rule}; in {', '.join(claim.cases)}."), end="\n\n")
