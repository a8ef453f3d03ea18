"""An examination in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from wellcond.examination import Examination, Severity, headline, interruption, rows, theta
from wellcond.linalg import number

STYLES = {
    Severity.SEVERE: ("✖", "bold red"),
    Severity.NOTICE: ("▲", "yellow"),
    Severity.GOOD: ("✔", "green"),
}


def print_summary(examination: Examination, console: Console) -> None:
    """Findings first, then the figures, each table as wide as the terminal allows."""
    console.print(summary(examination))


def summary(examination: Examination) -> RenderableType:
    """What `print_summary` prints."""
    m = examination.measurements
    parts: list[RenderableType] = [Text(text, style="bold yellow") for text in [interruption(examination)] if text]
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
        parts += [Text(), _figures(examination), Text(f"H: Hessian, G: Gauss-Newton. {theta(m)}", style="dim")]
    if m.row_norms is not None:
        parts.append(Text(f"Correlation of log √v with log of the Hessian's row norms: {m.row_norms.correlation}"))
    if m.layers:
        parts += [Text(), _layers(examination)]
    parts += [item("·", "dim", note) for note in m.notes]
    took = f"{number(m.seconds)} s; a gradient takes {number(m.gradient_seconds)} s"
    parts.append(Text(f"{m.products:,} curvature-vector products in {took}", style="dim"))
    return Group(*parts)


def item(mark: str, style: str, text: str) -> RenderableType:
    """A text that hangs on its mark."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(mark, style=style), Text(text))
    return grid


def _figures(examination: Examination) -> Table:
    m = examination.measurements
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    table.add_column("plain", justify="right")
    if m.preconditioned and m.optimizer:
        table.add_column(f"under {m.optimizer.name}'s P", justify="right")
    for row in rows(m):
        table.add_row(row.symbol, *row.cells[: 2 if m.preconditioned else 1])
    return table


def _layers(examination: Examination) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="κ of what each layer sees", title_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("as it is", "centered", "standardized", "rows normalized"):
        table.add_column(heading, justify="right")
    table.add_column("rank", justify="right")
    table.add_column("constant inputs", justify="right")
    for layer in examination.measurements.layers:
        table.add_row(
            Text(layer.name or "(model)"),
            *(str(e) for e in (layer.kappa, layer.centered, layer.standardized, layer.row_normalized)),
            f"{layer.rank} of {layer.columns}",
            str(layer.constant),
        )
    return table
