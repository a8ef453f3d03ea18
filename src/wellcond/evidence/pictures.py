"""Each claim's plot as SVG."""

from __future__ import annotations

import io
import re
from typing import Any

from wellcond.evidence.result import Result

COLORS = ("#2860c8", "#c84f14", "#1e8a6a", "#8a4fb5", "#8a5d00", "#566170")
"""Of the plots, C0 to C5: the page's own, readable on white and on dark."""


def svg(result: Result, *, themed: bool) -> str:
    """The plot of a claim's runs.

    Args:
        result: the claim and its runs.
        themed: for a page, black as the page's own ink and nothing behind it; else on white.

    Raises:
        ModuleNotFoundError: without matplotlib (`pip install wellcond[evidence]`).
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.rcsetup import cycler
    except ImportError as error:
        raise ModuleNotFoundError("the evidence's plots need matplotlib: pip install 'wellcond[evidence]'") from error
    # Text stays text: small files, and a reader can search it. A salt makes the same file of the same runs.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": result.claim.name, "font.size": 9, "path.simplify": True}
    style["axes.prop_cycle"] = cycler(linestyle=["-", "--"]) * cycler(color=COLORS)
    with rc_context(style):
        figure = Figure(figsize=result.claim.size, layout="constrained")
        FigureCanvasSVG(figure)
        ax = figure.add_subplot()
        result.claim.plot(result.runs, ax)
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
