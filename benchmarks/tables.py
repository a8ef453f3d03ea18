"""What a benchmark can be asked, and its tables: on the terminal, and between two markers of a page of the docs."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import re
from pathlib import Path

import torch

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "spectra-speed.md"
PEERS = ("curvlinops-for-pytorch", "hessian-eigenthings", "PyHessian")


def arguments(doc: str | None, quick: str, page: Path | None = None) -> argparse.ArgumentParser:
    """A command line with --quick, and with --write-docs where the tables stand on a page.

    Args:
        doc: of the benchmark.
        quick: what --quick leaves out.
        page: where the tables stand.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    if page is not None:
        parser.add_argument("--write-docs", action="store_true", help=f"write the tables into docs/{page.name}")
    return parser


class Table:
    """Rows of text under headings, the first column to the left and the others to the right."""

    def __init__(self, *headings: str):
        self.rows = [[str(heading) for heading in headings]]

    def add(self, *cells: object) -> None:
        """A row; a number to two decimals, None as a dash."""
        self.rows.append([_text(cell) for cell in cells])

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        return "\n".join(
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in self.rows
        )

    def markdown(self) -> str:
        """The table for a page."""
        heading, *rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        return "\n".join([heading, "|---|" + "---:|" * (len(self.rows[0]) - 1), *rows])


def write_section(name: str, *parts: Table | str, page: Path = PAGE) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` in a page, and say what made it.

    Raises:
        ValueError: if the page does not have the two markers once, in this order.
    """
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{page.name} needs the markers {start} and {end}, once and in this order")
    body = "\n\n".join(part if isinstance(part, str) else part.markdown() for part in (*parts, f"*{machine()}*"))
    before, after = text[: text.index(start)], text[text.index(end) :]
    page.write_text(f"{before}{start}\n{body}\n{after}", encoding="utf-8")


def machine() -> str:
    """What a figure was measured on, with what, and when."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    versions = [f"torch {re.sub(r'[+].*', '', torch.__version__)}"]
    for peer in PEERS:
        try:
            versions.append(f"{peer.removesuffix('-for-pytorch')} {importlib.metadata.version(peer)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    threads = torch.get_num_threads()
    used = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{device}, {used}; {', '.join(versions)}; {datetime.date.today().isoformat()}"


def share(right: int, of: int) -> str:
    """A count of a whole, and in percent; a dash of nothing."""
    return f"{right} of {of} ({100 * right / of:.0f} %)" if of else "–"


def _text(cell: object) -> str:
    if cell is None:
        return "–"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)
