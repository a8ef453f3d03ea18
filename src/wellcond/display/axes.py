"""Where plots are drawn."""

from __future__ import annotations

from typing import Any


def axes(given: Any = None, size: tuple[float, float] = (7.0, 4.2)) -> Any:
    """matplotlib axes: those that are given, or new ones.

    Args:
        given: axes, or None.
        size: of a new figure, in inches.

    Raises:
        ModuleNotFoundError: without matplotlib (`pip install wellcond[plot]`).
    """
    if given is not None:
        return given
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'wellcond[plot]'") from error
    return pyplot.subplots(figsize=size, layout="constrained")[1]
