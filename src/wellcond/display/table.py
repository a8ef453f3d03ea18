"""One table with three faces: HTML for a notebook, plain text for `str`, rich for a terminal."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich import table as rich_table
from rich.text import Text


@dataclass(frozen=True)
class Table:
    """Headings and rows of plain texts.

    Attributes:
        headings: of the columns.
        rows: of cells; a `Text` brings its style along in a terminal.
        above: a sentence before the table.
        below: sentences after it.
        words: columns of words, aligned left; the others hold figures, aligned right.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    above: str = ""
    below: Sequence[str] = ()
    words: Collection[int] = (0,)

    def html(self) -> str:
        """Everything escaped, no script.

        >>> Table(["λ"], [["<b>1</b>"]]).html()
        '<table><thead><tr><th>λ</th></tr></thead><tbody><tr><td>&lt;b&gt;1&lt;/b&gt;</td></tr></tbody></table>'
        """

        def row(cells: Sequence[str | Text], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

        body = "".join(row(cells, "td") for cells in self.rows)
        whole = f"<table><thead>{row(self.headings, 'th')}</thead><tbody>{body}</tbody></table>"
        return paragraphs([self.above] if self.above else []) + whole + paragraphs(self.below)

    def text(self) -> str:
        """Columns two spaces apart.

        >>> print(Table(["", "loss"], [["plain", "2"], ["Adam", "0.5"]]).text())
               loss
        plain     2
        Adam    0.5
        """
        rows = [[str(cell) for cell in row] for row in (self.headings, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

        def line(row: Sequence[str]) -> str:
            cells = enumerate(zip(row, widths, strict=True))
            return "  ".join(c.ljust(w) if i in self.words else c.rjust(w) for i, (c, w) in cells).rstrip()

        return "\n".join([*([self.above] if self.above else []), *map(line, rows), *self.below])

    def terminal(self, *, whole: Collection[int] = (), fold: Collection[int] = ()) -> rich_table.Table:
        """As wide as the terminal allows, `above` as its title; cells that don't fit are broken between words.

        Args:
            whole: columns whose cells are never broken.
            fold: columns whose words are broken too.
        """
        drawn = rich_table.Table(box=box.SIMPLE_HEAD, pad_edge=False, title=self.above or None, title_justify="left")
        for i, heading in enumerate(self.headings):
            side: Literal["left", "right"] = "left" if i in self.words else "right"
            drawn.add_column(
                Text(heading), justify=side, no_wrap=i in whole, overflow="fold" if i in fold else "ellipsis"
            )
        for row in self.rows:
            drawn.add_row(*(Text(c) if isinstance(c, str) else c for c in row))
        return drawn


def paragraphs(texts: Iterable[str]) -> str:
    """An HTML paragraph for each text."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)
