"""The picture of a spectral density."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wellcond.display.axes import axes

POSITIVE, NEGATIVE = "#1f5fa8", "#c2571a"


def plot(
    edges: Tensor,
    density: Tensor,
    standard_error: Tensor,
    ax: Any = None,
    *,
    scale: str,
    of: str,
    size: int,
    resolution: float,
    below: float,
) -> Any:
    """Draw a density with a band of two standard errors.

    Args:
        edges: (e,), rising; in log scale the cell around 0 has no density.
        density: (m,), fraction of the eigenvalues in each cell, per unit or per decade.
        standard_error: (m,), of it.
        ax: matplotlib axes; None for new ones.
        scale: "linear" or "log".
        of: what the eigenvalues are of.
        size: eigenvalues in all.
        resolution: in log scale the size below which eigenvalues are not told apart.
        below: fraction of the eigenvalues below it.
    """
    ax = axes(ax, size=(6.4, 4.8))
    if scale == "linear":
        _steps(ax, edges, density, standard_error, POSITIVE)
        ax.set_xlabel(f"eigenvalue of {of}")
        ax.set_ylabel("fraction per unit of eigenvalue")
        # Less than a third of an eigenvalue in the widest cell is no eigenvalue.
        floor = 0.3 / size / float(edges.diff().max())
    else:
        negative = int((edges < 0).sum()) - 1
        above = edges[negative + 1 :], density[negative:], standard_error[negative:]
        # Seen from 0 outwards the negative side runs backwards.
        under = [x.flip(0) for x in (edges[: negative + 1].abs(), density[:negative], standard_error[:negative])]
        for (outwards, height, error), color, sign in ((above, POSITIVE, "> 0"), (under, NEGATIVE, "< 0")):
            if len(height):
                _steps(ax, outwards, size * height, size * error, color, f"eigenvalue {sign}")
                ax.legend(frameon=False)
        ax.set_xscale("log")
        ax.axvspan(resolution / 10, resolution, color="0.92", zorder=0)
        ax.set_xlim(left=resolution / 2)
        ax.set_xlabel(f"|eigenvalue| of {of}")
        ax.set_ylabel("eigenvalues per decade")
        ax.set_title(f"{below:.1%} of {size:,} eigenvalues below the resolution, {resolution:.1e}", fontsize="medium")
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
