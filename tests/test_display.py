"""One table with three faces, names and sentences; results that know no page."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console
from rich.text import Text

import wellcond as wc
from wellcond.display import Renderer, Table, begun, capitalized, listed, number

HOSTILE = "<b>x</b> [bold red]y[/]"


def shown(table: Table, width: int = 80, **columns) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(table.terminal(**columns))
    return buffer.getvalue()


def test_a_table_says_the_same_in_three_faces():
    table = Table(
        ["", "loss", "note"], [["plain", "2", HOSTILE], ["Adam", "0.5", ""]], "above", ["below"], words=(0, 2)
    )
    assert table.text().splitlines() == [
        "above",
        "       loss  note",
        "plain     2  " + HOSTILE,
        "Adam    0.5",
        "below",
    ]
    markup = table.html()
    assert markup.startswith("<p>above</p><table>")
    assert markup.endswith("</table><p>below</p>")
    assert "&lt;b&gt;x&lt;/b&gt; [bold red]y[/]" in markup
    assert HOSTILE in shown(table)  # no markup in a terminal either


def test_a_terminal_breaks_words_only_where_it_may():
    table = Table(["name", "figure"], [["a" * 30, "12 to 34"]])
    assert "…" in shown(table, 20)
    assert "…" not in shown(table, 20, fold=(0,))
    assert "12 to 34" in shown(table, 30, whole=(1,), fold=(0,))
    assert max(map(len, shown(table, 20, fold=(0,)).splitlines())) <= 20


def test_a_cell_brings_its_style_along():
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=True, color_system="standard")
    console.print(Table(["figure"], [[Text("1", "red")]]).terminal())
    assert "\x1b[31m1" in buffer.getvalue()
    assert "<td>1</td>" in Table(["figure"], [[Text("1", "red")]]).html()


def test_names_and_sentences():
    assert [listed("abc", most) for most in (2, 3)] == ["a, b and 1 more", "a, b, c"]
    assert [begun([1, 2, 3], most) for most in (2, 3)] == ["1, 2 …", "1, 2, 3"]
    assert capitalized("κ of PᵀHP") == "Κ of PᵀHP"
    assert number(float("inf")) == "inf"


@pytest.mark.parametrize("result", [wc.results.Examination, wc.results.History])
def test_a_result_draws_with_what_the_package_registered(result):
    renderer: Renderer = result.renderer
    assert all(callable(getattr(renderer, face)) for face in ("page", "plot"))


def test_importing_the_package_loads_nothing_heavy():
    """Only pages, plots and the command need them."""
    code = "import sys, wellcond; print([m for m in ('plotly', 'jinja2', 'matplotlib', 'typer') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
