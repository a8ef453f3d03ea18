"""The page's charts on matplotlib axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wellcond.display import axes, number
from wellcond.examination import Examination, Measurements, RowNormCorrelation, StepSizes
from wellcond.forecast import Forecast
from wellcond.normalization import LayerConditioning
from wellcond.report.figures import counts, eigenvalue_bound, shown_spectra
from wellcond.report.layers import COLUMNS, brief, highest, level, shown_layers
from wellcond.report.rates import KINDS, by_kind

COLORS = ("#2860c8", "#c84f14", "#1e8a6a", "#8a4fb5")
HEAT = ("#f4f1e8", "#f0b669", "#c8482f", "#5b1130")


def plot(examination: Examination, which: str, ax: Any = None) -> Any:
    """See `Examination.plot`."""
    if which not in _PLOTS:
        raise ValueError(f"there is no chart {which!r}; there are {', '.join(_PLOTS)}")
    data, draw = _PLOTS[which]
    drawn = data(examination.measurements)
    if not drawn:
        raise ValueError(f"this examination has no data for {which!r}")
    return draw(drawn, ax)


def _spectrum(m: Measurements, ax: Any) -> Any:
    ax = axes(ax)
    for color, (label, c) in zip(COLORS, shown_spectra(m).items(), strict=False):
        at, low, high = (x.numpy() for x in counts(c))
        if c.spectrum is not None:
            ax.step(at, low.clip(0.5), where="post", color=color, label=label)
        else:
            ax.fill_between(at, low.clip(0.5), high.clip(0.5), color=color, alpha=0.4, label=label)
    bound = eigenvalue_bound(m)
    if bound is not None:
        label = f"stability bound, λ = {number(bound)}"
        ax.axvline(bound, color="#c0282d", linestyle="--", linewidth=1.2, label=label)
    ax.set(xscale="log", yscale="log", xlabel="eigenvalue λ", ylabel="number of eigenvalues ≥ λ")
    ax.legend(frameon=False)
    return ax


def _layers(layers: Sequence[LayerConditioning], ax: Any) -> Any:
    ax = axes(ax, size=(7.0, 1.4 + 0.24 * len(layers)))
    from matplotlib.colors import LinearSegmentedColormap

    colors, top = LinearSegmentedColormap.from_list("heat", HEAT), highest(layers)
    levels = [[level(e) for e in layer.kappas.values()] for layer in layers]
    shown = ax.imshow(levels, cmap=colors, vmin=0, vmax=top, aspect="auto")
    for i, layer in enumerate(layers):
        for j, kappa in enumerate(layer.kappas.values()):
            color = "white" if levels[i][j] > 0.6 * top else "black"
            ax.text(j, i, brief(kappa), ha="center", va="center", fontsize=7, color=color)
    ax.set_xticks(range(len(COLUMNS)), COLUMNS)
    ax.set_yticks(range(len(layers)), [layer.label for layer in layers], fontsize=7)
    ax.figure.colorbar(shown, ax=ax, label="log₁₀ κ of the layer's inputs")
    return ax


def _rates(s: StepSizes, ax: Any) -> Any:
    return _histogram(s.rate_edges, by_kind(s.rates), "effective learning rate αP²", ax)


def _decay(s: StepSizes, ax: Any) -> Any:
    axis = "weight decay received in a step, fraction of the parameter"
    return _histogram(s.decay_edges, by_kind(s.decays), axis, ax)


def _histogram(edges: Sequence[float], stacked: dict[str, list[int]], axis: str, ax: Any) -> Any:
    ax, below = axes(ax), [0] * (len(edges) - 1)
    for color, (kind, heights) in zip(COLORS, stacked.items(), strict=False):
        above = [a + b for a, b in zip(below, heights, strict=True)]
        ax.stairs(above, edges, baseline=below, fill=True, color=color, label=KINDS[kind][1])
        below = above
    ax.set(xscale="log", xlabel=axis, ylabel="number of parameters")
    ax.legend(frameon=False)
    return ax


def _row_norms(r: RowNormCorrelation, ax: Any) -> Any:
    ax = axes(ax)
    ax.loglog(r.row_norm.tolist(), r.root_v.tolist(), ".", color=COLORS[0], alpha=0.4)
    ax.set(xlabel="row norm of H", ylabel="√v", title=f"correlation of the logarithms {r.correlation}")
    return ax


_PLOTS: dict[str, tuple[Callable[[Measurements], Any], Callable[[Any, Any], Any]]] = {
    "spectrum": (lambda m: shown_spectra(m) and m, _spectrum),
    "layers": (shown_layers, _layers),
    "forecast": (lambda m: m.forecast, Forecast.plot),
    "rates": (lambda m: m.step_sizes and m.step_sizes.rate_edges and m.step_sizes, _rates),
    "decay": (lambda m: m.step_sizes and m.step_sizes.decay_edges and m.step_sizes, _decay),
    "row norms": (lambda m: m.row_norms and m.row_norms.correlation.defined and m.row_norms, _row_norms),
}
"""What is drawn, nothing where an examination has no data for it; and how."""
