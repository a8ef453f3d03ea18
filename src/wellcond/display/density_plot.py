"""The picture of a spectral density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from wellcond.display.axes import axes

if TYPE_CHECKING:
    from wellcond.linalg import SpectralDensity

POSITIVE, NEGATIVE = "#1f5fa8", "#c2571a"


def plot(d: SpectralDensity, ax: Any = None) -> Any:
    """Draw `d` with a band of two standard errors; see `SpectralDensity.plot`."""
    ax = axes(ax, size=(6.4, 4.8))
    if d.scale == "linear":
        _steps(ax, d.edges, d.density, d.standard_error, POSITIVE)
        ax.set_xlabel(f"eigenvalue of {d.of}")
        ax.set_ylabel("fraction per unit of eigenvalue")
        # Less than a third of an eigenvalue in the widest cell is no eigenvalue.
        floor = 0.3 / d.size / float(d.edges.diff().max())
    else:
        negative = int((d.grid < 0).sum())
        # Seen from 0 outwards the negative side runs backwards.
        below = (
            d.edges[: negative + 1].abs().flip(0),
            d.density[:negative].flip(0),
            d.standard_error[:negative].flip(0),
        )
        above = (d.edges[negative + 1 :], d.density[negative:], d.standard_error[negative:])
        for (edges, density, error), color, sign in ((above, POSITIVE, "> 0"), (below, NEGATIVE, "< 0")):
            if len(density):
                _steps(ax, edges, d.size * density, d.size * error, color, f"eigenvalue {sign}")
                ax.legend(frameon=False)
        ax.set_xscale("log")
        ax.axvspan(d.resolution / 10, d.resolution, color="0.92", zorder=0)
        ax.set_xlim(left=d.resolution / 2)
        ax.set_xlabel(f"|eigenvalue| of {d.of}")
        ax.set_ylabel("eigenvalues per decade")
        below_resolution = f"{d.rest.value:.1%} of {d.size:,} eigenvalues below the resolution, {d.resolution:.1e}"
        ax.set_title(below_resolution, fontsize="medium")
        floor = 1.0
    drawn = d.density[d.density > 0]
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
