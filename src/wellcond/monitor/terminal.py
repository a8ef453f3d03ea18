"""A history in a terminal: sparklines, last values, findings."""

from __future__ import annotations

import math
import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from wellcond.display import Table, number
from wellcond.examination import Severity
from wellcond.monitor.history import History, read_history
from wellcond.monitor.record import LABELS
from wellcond.report import STYLES, item

BARS = "▁▂▃▄▅▆▇█"
POLL = 0.5
"""Seconds between two looks at the file."""

FINDINGS_SHOWN = 6


def sparkline(values: list[float], width: int) -> str:
    """The values as bars, at most `width`: logarithmic where all are positive and span more than ten times; of values
    that share a bar the largest. What is not finite is a cross.

    >>> sparkline([1, 2, 3, math.nan, 8], 10)
    '▁▂▃×█'
    """
    size = -(-len(values) // width) if values else 1
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    shown = [max((v for v in group if math.isfinite(v)), default=math.nan) for group in groups]
    finite = [v for v in shown if math.isfinite(v)]
    if not finite:
        return "×" * len(shown)
    low, high = min(finite), max(finite)
    logarithmic = low > 0 and high > 10 * low
    scale = math.log if logarithmic else float
    span = scale(high) - scale(low)

    def bar(v: float) -> str:
        if not math.isfinite(v):
            return "×"
        height = (scale(v) - scale(low)) / span if span > 0 else 0.0
        return BARS[min(int(height * len(BARS)), len(BARS) - 1)]

    return "".join(bar(v) for v in shown)


def view(history: History, width: int) -> RenderableType:
    """Everything at a glance.

    Args:
        history: finished or not.
        width: columns of the terminal.
    """
    run, records = history.run, history.records
    parts: list[RenderableType] = [Text(history.headline, style="bold")]
    if not records:
        return Group(*parts, Text(history.unmeasured))
    last = records[-1]
    ago = max(0.0, time.time() - run["started"] - last.seconds)
    when = "" if history.finished else f", {ago:.0f} s ago"
    parts.append(
        Text(
            f"step {last.step:,}, {len(records)} measurements in {number(last.seconds)} s{when}; the monitor took "
            f"{number(100 * last.share)} % of the time",
            style="dim",
        )
    )
    rows: list[list[str | Text]] = []
    for name, text in history.latest().items():
        _, values = history.series(name)
        style = "bold red" if name == "edge_ratio" and values[-1] > 1 else ""
        rows.append([LABELS[name], Text(text, style=style), sparkline(values, max(8, min(60, width - 46)))])
    parts.append(Table(["figure", "last", "first to last"], rows, words=(0, 2)).terminal(whole=(0, 2), fold=(1,)))
    for severity, title in list(history.findings().values())[:FINDINGS_SHOWN]:
        parts.append(item(*STYLES[Severity.of(severity)], title))
    jumps = [step for record in records for step in record.jumps]
    if jumps:
        parts.append(Text(f"the loss jumped at step {', '.join(f'{s:,}' for s in jumps[-5:])}", style="yellow"))
    if last.failed is not None:
        parts.append(Text(f"step {last.step:,} could not be measured, because {last.failed}", style="red"))
    return Group(*parts)


def watch(path: Path, console: Console, *, once: bool = False) -> History:
    """Show a history until its run is finished, or once.

    Args:
        path: what the monitor writes.
        console: where; without a terminal it is shown once.
        once: show what there is and return.

    Returns:
        What was shown last.

    Raises:
        ValueError: for a file that is no history.
        OSError: if it can't be read.
    """
    history = read_history(path)
    if once or history.finished or not console.is_terminal:
        console.print(view(history, console.width))
        return history
    size = -1
    with Live(view(history, console.width), console=console, auto_refresh=False) as live:
        while not history.finished:
            time.sleep(POLL)
            now = path.stat().st_size
            if now != size:
                history, size = read_history(path), now
            live.update(view(history, console.width), refresh=True)
    return history
