"""How results look in a notebook: small tables, everything escaped, no script."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], above: str = "", below: Iterable[str] = ()) -> str:
    """An HTML table of plain texts.

    Args:
        headings: of the columns.
        rows: of cells.
        above: a sentence before it.
        below: sentences after it.

    >>> table(["λ"], [["<b>1</b>"]])
    '<table><thead><tr><th>λ</th></tr></thead><tbody><tr><td>&lt;b&gt;1&lt;/b&gt;</td></tr></tbody></table>'
    """

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    whole = f"<table><thead>{row(headings, 'th')}</thead><tbody>{body}</tbody></table>"
    return paragraphs([above] if above else []) + whole + paragraphs(below)


def paragraphs(texts: Iterable[str]) -> str:
    """One a text."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)
