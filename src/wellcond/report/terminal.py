"""An examination in a terminal."""

from __future__ import annotations

from rich import table
from rich.console import Console, Group, RenderableType
from rich.text import Text

from wellcond.display import Table, number
from wellcond.examination import Examination, Measurements, Severity, headline, interruption
from wellcond.report.figures import rows, theta
from wellcond.report.layers import layer_rows

STYLES = {
    Severity.SEVERE: ("✖", "bold red"),
    Severity.NOTICE: ("▲", "yellow"),
    Severity.GOOD: ("✔", "green"),
}


def print_summary(examination: Examination, console: Console) -> None:
    """Findings first, then the figures, each table as wide as the terminal allows."""
    m = examination.measurements
    parts: list[RenderableType] = []
    if examination.interrupted:
        parts.append(Text(interruption(examination.interrupted), style="bold yellow"))
    parts += [
        Text(headline(m), style="bold"),
        Text(f"loss {number(m.loss)}, gradient norm {number(m.gradient_norm)}; measured in {m.dtype}"),
        Text(),
    ]
    for f in examination.findings:
        parts.append(item(*STYLES[f.severity], f.title))
        if f.effect is not None:
            parts.append(item(" ", "", f"tried: {f.effect}"))
    if m.figures:
        parts += [Text(), _figures(m), Text(f"H: Hessian, G: Gauss-Newton. {theta(m)}", style="dim")]
    if m.row_norms is not None:
        parts.append(Text(f"Correlation of log √v with log of the Hessian's row norms: {m.row_norms.correlation}"))
    if m.layers:
        parts += [Text(), _layers(m)]
    parts += [item("·", "dim", note) for note in m.notes]
    took = f"{number(m.seconds)} s; a gradient takes {number(m.gradient_seconds)} s"
    parts.append(Text(f"{m.products:,} curvature-vector products in {took}", style="dim"))
    console.print(Group(*parts))


def item(mark: str, style: str, text: str) -> RenderableType:
    """A text that hangs on its mark."""
    grid = table.Table.grid(padding=(0, 1))
    grid.add_row(Text(mark, style=style), Text(text))
    return grid


def _figures(m: Measurements) -> table.Table:
    headings = ["figure", "plain"]
    if m.preconditioned and m.optimizer:
        headings.append(f"under {m.optimizer.name}'s P")
    return Table(headings, [(row.symbol, *row.cells)[: len(headings)] for row in rows(m)]).terminal(whole=(0,))


def _layers(m: Measurements) -> table.Table:
    headings = ["layer", "as it is", "centered", "standardized", "rows normalized", "rank", "constant inputs"]
    without_scaled = [[*row[:3], *row[4:]] for row in layer_rows(m)]
    return Table(headings, without_scaled, "κ of what each layer sees").terminal(fold=(0,))
