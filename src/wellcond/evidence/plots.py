"""Each claim's plot as SVG, and what these plots share."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from wellcond.evidence.claim import Axes, Claim, Results

COLORS = ("#2860c8", "#c84f14", "#1e8a6a", "#8a4fb5", "#8a5d00", "#566170")
"""Of the plots, C0 to C5: the page's own, readable on white and on dark."""


def svg(claim: Claim, results: Results, *, themed: bool) -> str:
    """The plot of a claim's runs.

    Args:
        claim: whose plot.
        results: its runs.
        themed: for a page, black as the page's own ink and nothing behind it; else on white.

    Raises:
        ModuleNotFoundError: without matplotlib (`pip install wellcond[evidence]`).
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.rcsetup import cycler
    except ImportError as error:
        raise ModuleNotFoundError("the evidence's plots need matplotlib: pip install 'wellcond[evidence]'") from error
    # Text stays text: small files, and a reader can search it. A salt makes the same file of the same runs.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": claim.name, "font.size": 9, "legend.fontsize": 6}
    style["axes.prop_cycle"] = cycler(linestyle=["-", "--"]) * cycler(color=COLORS)
    with rc_context(style):
        figure = Figure(figsize=claim.size, layout="constrained")
        ax = figure.add_subplot()
        claim.plot(results, ax)
        if ax.get_legend_handles_labels()[1] and ax.get_legend() is None:
            ax.legend()
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=themed, metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    # Hundredths of a point are more than a screen shows, and half of the file.
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text[text.index("<svg") :])
    if themed:
        # Black is what matplotlib leaves out or writes so.
        text = re.sub(r"#000000|\bblack\b", "currentColor", text)
        text = text.replace("<svg ", '<svg fill="currentColor" aria-hidden="true" ', 1)
        text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt"', "", text, count=1)
    return text


def key(ax: Axes, styles: Mapping[str, str]) -> None:
    """Entries of the legend that tell what a color, line or marker stands for: words → matplotlib's format."""
    for words, style in styles.items():
        ax.plot([], [], style, label=words)


def row_a_case(
    ax: Axes, results: Results, name: str, *, lower: float = 0.0, errors: float | None = None, **how: Any
) -> None:
    """The mean of a figure ± its spread, or so many standard errors, each case in a row of its own or a bit lower.

    A case whose runs have no such figure leaves its row empty.
    """
    has = {place: runs for place, runs in enumerate(results) if name in runs.figures[0]}
    means = [runs.mean(name) for runs in has.values()]
    spreads = [runs.spread(name) * (errors / len(runs.figures) ** 0.5 if errors else 1.0) for runs in has.values()]
    ax.errorbar(means, [place + lower for place in has], xerr=spreads, **how)
    ax.set_yticks(range(len(results)), [runs.case for runs in results], fontsize=7)
