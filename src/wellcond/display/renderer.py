"""What a result needs of the rooms above it, without knowing them."""

from __future__ import annotations

from typing import Any, Protocol


class Renderer(Protocol):
    """Shows results of one kind to people.

    The class of such a result declares a `renderer`, its methods call it, and `wellcond/__init__.py` registers one: so
    that pages and plots are functions of a result, which imports none of them.
    """

    def page(self, result: Any, /) -> str:
        """One HTML page that works offline."""

    def plot(self, result: Any, which: str, ax: Any, /) -> Any:
        """Draw one figure on matplotlib axes, new ones for None, and return them."""
