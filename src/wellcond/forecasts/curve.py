"""Predicted loss curves: what they say, how far they may be trusted, and how they look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wellcond.display import Table, axes, number
from wellcond.preconditioners import Momentum


@dataclass(frozen=True)
class Curve:
    """The predicted losses of one candidate.

    Attributes:
        name: the candidate's, with rate and momentum where it has several.
        losses: (steps + 1,), float64 on the CPU; the first is the loss now.
        learning_rate: α.
        momentum: the recursion that was followed.
        edge_ratio: α times the steepest curvature seen, over the stability bound.
        negative_share: of the squared gradient on negative curvature, along which the quadratic model falls for ever.
        trusted_steps: up to here the true loss at the predicted parameters agrees with the prediction.
        true_losses: step → true loss at the parameters predicted for it, where it was evaluated.
    """

    name: str
    losses: Tensor
    learning_rate: float
    momentum: Momentum
    edge_ratio: float
    negative_share: float
    trusted_steps: int
    true_losses: Mapping[int, float]

    def draw(self, ax: Any, start: int = 0, **look: Any) -> Any:
        """Draw the losses on matplotlib axes from step `start` on, solid while trusted, dotted beyond; their color."""
        losses, end = self.losses.tolist(), self.trusted_steps
        steps = range(start, start + len(losses))
        (line,) = ax.plot(steps[: end + 1], losses[: end + 1], linewidth=1.8, **look)
        ax.plot(steps[end:], losses[end:], color=line.get_color(), linestyle=":", linewidth=1.4)
        return line.get_color()

    @property
    def diverges(self) -> bool:
        """Whether the step is unstable along some direction: what is predicted grows without end."""
        return self.edge_ratio > 1 + 1e-9


@dataclass(frozen=True)
class Forecast:
    """Predicted loss curves of several candidates from the same parameters.

    Attributes:
        curves: by name.
        loss: now.
        steps: how far they go.
        curvature: the matrix of the quadratic model.
        products: matrix-vector products spent on it.
        forward_passes: evaluations of the loss.
    """

    curves: dict[str, Curve]
    loss: float
    steps: int
    curvature: str
    products: int
    forward_passes: int

    def __getitem__(self, name: str) -> Curve:
        if name not in self.curves:
            raise KeyError(f"there is no curve {name!r}; there are {', '.join(self.curves)}")
        return self.curves[name]

    def ranking(self, at: int | None = None) -> list[str]:
        """Names by the loss predicted at a step, the lowest first; those that diverge come last.

        Args:
            at: the step, 1 to `steps`; default: the last.
        """
        at = self.steps if at is None else at
        if not 1 <= at <= self.steps:
            raise ValueError(f"got at={at}; the curves go from step 1 to {self.steps}")
        return sorted(self.curves, key=lambda name: (self[name].diverges, float(self[name].losses[at])))

    @property
    def best(self) -> Curve:
        """The first of the ranking at the last step."""
        return self[self.ranking()[0]]

    def __str__(self) -> str:
        """A table: the curves in the order of their ranking."""
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        headings = ["", "learning rate", "β", "edge ratio", f"loss at {self.steps}", "trusted up to", ""]
        about = f"loss now {number(self.loss)}; quadratic model with {self.curvature}, {self.products} products"
        rows: list[tuple[str, ...]] = []
        for name in self.ranking():
            c = self[name]
            notes = ["diverges"] if c.diverges else []
            if c.negative_share:
                notes.append(f"{100 * c.negative_share:.2g} % of the gradient on negative curvature")
            loss = "–" if c.diverges else number(float(c.losses[-1]))
            figures = [number(x) for x in (c.learning_rate, c.momentum.beta, c.edge_ratio)]
            rows.append((name, *figures, loss, f"step {c.trusted_steps}", ", ".join(notes)))
        return Table(headings, rows, about, words=(0, 6))

    def window(self) -> tuple[float, float]:
        """The losses that a plot shows: those of the curves that don't diverge, and some above the one now."""
        lowest = min((float(c.losses.min()) for c in self.curves.values() if not c.diverges), default=self.loss)
        span = max(self.loss - lowest, 1e-12 * abs(self.loss), 1e-300)
        return lowest - 0.05 * span, self.loss + 0.25 * span

    def plot(self, ax: Any = None) -> Any:
        """Draw the curves: solid while trusted, dotted beyond, with the true losses that were evaluated as circles.

        Args:
            ax: matplotlib axes; default: new ones.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: without matplotlib (`pip install wellcond[plot]`).
        """
        ax = axes(ax)
        for name in self.ranking():
            c = self[name]
            color = c.draw(ax, label=f"{name} (diverges)" if c.diverges else name)
            ax.plot(list(c.true_losses), list(c.true_losses.values()), "o", color=color, fillstyle="none", markersize=5)
        ax.set(xlabel="step", ylabel="loss", xlim=(0, 1.01 * self.steps), ylim=self.window())
        ax.set_title("Predicted loss (dotted: beyond what may be trusted; ○: true loss there)", fontsize="medium")
        ax.legend(frameon=False)
        return ax
