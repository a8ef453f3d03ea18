"""What was found of each variant, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from wellcond.condition_numbers import Conditioning
from wellcond.display import Table, axes, number
from wellcond.forecasts import Curve
from wellcond.linalg import Estimate


@dataclass(frozen=True)
class Variant:
    """One network, as it is or changed.

    Attributes:
        name: of the change; "as it is" for the given network.
        model: a copy with the change, at the start: to be trained by a new optimizer.
        start_loss: of it.
        conditioning: of PᵀHP at the start, P the optimizer's after one gradient (and the variant's own); None with a
            note where it has no figures.
        hessian: of H there.
        learning_rate: the best of those tried in the warm-up, of the optimizer's first group; where there was none, the
            given one.
        edge_ratio: α·λ_max(PᵀHP) over the optimizer's stability bound, at the start and that rate.
        suggested_learning_rate: at which that would be a half.
        warm_up: losses of its steps, each of its batch and before it.
        loss: after the warm-up.
        curve: forecast from there by gradient descent in z at 1/λ_max, P the optimizer's then; None with a note where
            nothing is predicted.
        predicted: the loss at the last step of the curve that may be trusted; `loss` where one of the variants has no
            curve.
        notes: what to know.
    """

    name: str
    model: nn.Module
    start_loss: float
    conditioning: Conditioning | None
    hessian: Conditioning | None
    learning_rate: float
    edge_ratio: Estimate
    suggested_learning_rate: Estimate
    warm_up: tuple[float, ...]
    loss: float
    curve: Curve | None
    predicted: Estimate
    notes: tuple[str, ...]


@dataclass(frozen=True)
class WhatIf:
    """Variants of one network: how well conditioned each is, and what is predicted of it after a short warm-up.

    Attributes:
        variants: by name, "as it is" first.
        warm_up: steps that each took before its forecast.
        steps: how far the forecasts go from there.
    """

    variants: dict[str, Variant]
    warm_up: int
    steps: int

    def __getitem__(self, name: str) -> Variant:
        if name not in self.variants:
            raise KeyError(f"there is no variant {name!r}; there are {', '.join(self.variants)}")
        return self.variants[name]

    @property
    def ranking(self) -> list[str]:
        """Names by the predicted loss, the lowest first."""
        return sorted(self.variants, key=lambda name: self[name].predicted.value)

    @property
    def better(self) -> str | None:
        """The predicted winner; None where the intervals of the predicted losses don't tell it from the next.

        How often a call is right, and how often there is none, is counted in docs/what-if.md.
        """
        first, second = (self[name].predicted for name in self.ranking[:2])
        return self.ranking[0] if first.high < second.low else None

    def __str__(self) -> str:
        """A table, the variants in the order of their predicted losses."""
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def plot(self, ax: Any = None) -> Any:
        """Draw the predicted losses after the warm-up: solid while trusted, dotted beyond.

        Args:
            ax: matplotlib axes; default: new ones.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: without matplotlib (`pip install wellcond[plot]`).
        """
        ax = axes(ax)
        for name, v in self.variants.items():
            (line,) = ax.plot(range(self.warm_up + 1), [*v.warm_up, v.loss], "--", linewidth=1.0, label=name)
            if v.curve is not None:
                v.curve.draw(ax, self.warm_up, color=line.get_color())
        lowest = min(min((*v.warm_up, v.loss, v.predicted.value)) for v in self.variants.values())
        highest = max(max(v.start_loss, v.loss) for v in self.variants.values())
        if lowest > 0:
            ax.set_yscale("log")
            low, high = max(lowest / 2, highest * 1e-6), 2 * highest
        else:
            margin = 0.1 * max(highest - lowest, 1e-300)
            low, high = lowest - margin, highest + margin
        ax.set(xlabel="step", ylabel="loss", ylim=(low, high))
        ax.set_title("Warm-up (dashed) and predicted loss (dotted: beyond what may be trusted)", fontsize="medium")
        ax.legend(frameon=False)
        return ax

    def _table(self) -> Table:
        rows = [_row(self[name]) for name in self.ranking]
        return Table(list(rows[0]), [list(row.values()) for row in rows], below=[self._verdict(), *self._notes()])

    def _verdict(self) -> str:
        if self.better is None:
            first, second = self.ranking[:2]
            return f"{first} and {second} are too near to each other to be told apart"
        return f"predicted to be the better one: {self.better}"

    def _notes(self) -> list[str]:
        start = self["as it is"].start_loss
        lines = []
        for name, v in self.variants.items():
            differs = v.start_loss - start
            notes = [*v.notes]
            if abs(differs) > 1e-5 * max(abs(start), 1e-300):
                notes.append(f"starts from a loss that differs by {differs:+.2g}")
            if notes:
                lines.append(f"{name}: {'; '.join(notes)}")
        return lines


def _row(v: Variant) -> dict[str, str]:
    """Of the table, by its headings."""
    return {
        "": v.name,
        "loss at start": number(v.start_loss),
        "after warm-up": number(v.loss),
        "predicted": str(v.predicted),
        "trusted steps": str(v.curve.trusted_steps) if v.curve else "–",
        "learning rate": number(v.learning_rate),
        "edge ratio": str(v.edge_ratio),
        "κ_eff of H": str(v.hessian.kappa_effective) if v.hessian else "–",
        "of PᵀHP": str(v.conditioning.kappa_effective) if v.conditioning else "–",
        "κ̄ of PᵀHP": str(v.conditioning.kappa_mean) if v.conditioning else "–",
    }
