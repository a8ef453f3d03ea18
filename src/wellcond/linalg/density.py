"""The density of a spectrum, and its picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from wellcond.display import Table, axes
from wellcond.linalg.estimate import Estimate

POSITIVE, NEGATIVE = "#1f5fa8", "#c2571a"


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of an operator's eigenvalues, with its two errors.

    The *standard error* is what the choice of random directions does; *lower* and *upper* bound the cumulative
    distribution whatever the spectrum between the moments that the runs know, sampling included (theory, section 2.2).

    Attributes:
        size: n, eigenvalues in all.
        scale: "linear" or "log".
        edges: (e,), rising, between which the cells lie. In log scale the cell around 0 is no part of the grid.
        grid: (m,), the middle of each cell (in log scale the geometric one, with the sign of the cell).
        density: (m,), fraction of the eigenvalues per unit of λ; in log scale per decade of |λ|.
        standard_error: (m,), of the density.
        cumulative: (e,), estimated fraction of eigenvalues below each edge.
        lower, upper: (e,), bounds of it, each with probability `confidence`.
        nodes, weights: (q,), the estimate itself as a measure of mass 1, nodes rising: Σ wᵢ f(λᵢ) is the estimated mean
            of f over the eigenvalues.
        largest, smallest: both ends.
        resolution: in log scale the |λ| under which eigenvalues are not told apart; else 0.
        rest: the fraction of eigenvalues below the resolution; 0 in linear scale.
        isolated: eigenvalues known one by one, each of weight 1/n.
        directions: random directions behind the rest.
        products: matrix-vector products spent.
        confidence: probability of a bound.
        of: the operator, for the axes of a plot.
    """

    size: int
    scale: str
    edges: Tensor = field(repr=False)
    grid: Tensor = field(repr=False)
    density: Tensor = field(repr=False)
    standard_error: Tensor = field(repr=False)
    cumulative: Tensor = field(repr=False)
    lower: Tensor = field(repr=False)
    upper: Tensor = field(repr=False)
    nodes: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    largest: Estimate
    smallest: Estimate
    resolution: float
    rest: Estimate
    isolated: int
    directions: int
    products: int
    confidence: float
    of: str

    def _repr_html_(self) -> str:
        rows = [("largest", self.largest.with_error()), ("smallest", self.smallest.with_error())]
        if self.scale == "log":
            rows.append((f"fraction below {self.resolution:.1e} in size", str(self.rest)))
        what = f"density of {self.size:,} eigenvalues of {self.of}, {self.scale} scale"
        spent = f"{self.directions} random directions, {self.products:,} products; .plot() draws it"
        return Table(["", "eigenvalue"], rows, what, [spent]).html()

    def plot(self, ax: Any = None) -> Any:
        """Draw the density with a band of two standard errors.

        Args:
            ax: matplotlib Axes to draw in; None for new ones.

        Returns:
            The Axes.

        Raises:
            ImportError: without matplotlib, which the extra "plot" installs.
        """
        ax = axes(ax, size=(6.4, 4.8))
        edges, density, error = self.edges, self.density, self.standard_error
        if self.scale == "linear":
            _steps(ax, edges, density, error, POSITIVE)
            ax.set(xlabel=f"eigenvalue of {self.of}", ylabel="fraction per unit of eigenvalue")
            # Less than a third of an eigenvalue in the widest cell is no eigenvalue.
            floor = 0.3 / self.size / float(edges.diff().max())
        else:
            negative = int((edges < 0).sum()) - 1
            above = edges[negative + 1 :], density[negative:], error[negative:]
            # Seen from 0 outwards the negative side runs backwards.
            under = [x.flip(0) for x in (edges[: negative + 1].abs(), density[:negative], error[:negative])]
            for (outwards, height, spread), color, sign in ((above, POSITIVE, "> 0"), (under, NEGATIVE, "< 0")):
                if len(height):
                    _steps(ax, outwards, self.size * height, self.size * spread, color, f"eigenvalue {sign}")
                    ax.legend(frameon=False)
            ax.axvspan(self.resolution / 10, self.resolution, color="0.92", zorder=0)
            ax.set(xscale="log", xlabel=f"|eigenvalue| of {self.of}", ylabel="eigenvalues per decade")
            ax.set_xlim(left=self.resolution / 2)
            below = f"{self.rest.value:.1%} of {self.size:,} eigenvalues below the resolution"
            ax.set_title(f"{below}, {self.resolution:.1e}", fontsize="medium")
            floor = 1.0
        drawn = density[density > 0]
        if len(drawn) > 1 and float(drawn.max()) > 100 * float(drawn.min()):
            ax.set_yscale("log")
            ax.set_ylim(bottom=floor)
        else:
            ax.set_ylim(bottom=0)
        return ax


def _steps(ax: Any, edges: Tensor, density: Tensor, error: Tensor, color: str, label: str | None = None) -> None:
    ax.stairs(density.numpy(), edges.numpy(), baseline=None, color=color, linewidth=1.2, label=label)
    low, high = (density - 2 * error).clamp_min(0), density + 2 * error
    ax.stairs(high.numpy(), edges.numpy(), baseline=low.numpy(), fill=True, color=color, alpha=0.25, linewidth=0)
