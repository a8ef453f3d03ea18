"""The heat map of the layers' conditioning."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from typing import Any

from wellcond.display import number, short
from wellcond.examination import KAPPAS, Measurements
from wellcond.linalg import Estimate
from wellcond.normalization import LayerConditioning
from wellcond.report.chart import HEAT, Chart, new_figure

PANEL = 50
"""Layers in one panel; more stand in several, side by side where there is room, and on several sheets of paper."""

COLUMNS = tuple(KAPPAS.values())


def level(kappa: Estimate) -> float:
    """log₁₀ κ; NaN where it is not defined or infinite."""
    return math.log10(kappa.value) if math.isfinite(kappa.value) and kappa.value > 0 else math.nan


def layer_rows(m: Measurements) -> list[list[str]]:
    """Of each layer its name, its κ as in `COLUMNS`, its rank and how many of its inputs never vary."""
    return [
        [layer.label, *map(str, layer.kappas.values()), f"{layer.rank} of {layer.columns}", str(layer.constant)]
        for layer in m.layers
    ]


def brief(kappa: Estimate) -> str:
    """For a cell of the map: as short as it can be said."""
    if math.isnan(level(kappa)):
        return ""
    x = kappa.certain
    text = number(x) if x < 9995 else f"{x:.1e}".replace("e+0", "e").replace("e+", "e")
    return ("≥" if kappa.unresolved else "") + text


def layers_chart(m: Measurements) -> Chart | None:
    """log κ of every layer, as it is and under each normalization."""
    levels = [[x for e in layer.kappas.values() if not math.isnan(x := level(e))] for layer in m.layers]
    layers = [layer for layer, known in zip(m.layers, levels, strict=True) if known]
    if not layers:
        return None
    most = max(1.0, *itertools.chain(*levels))  # where the colors end
    count = -(-len(layers) // PANEL)
    size = -(-len(layers) // count)
    panels = [layers[i : i + size] for i in range(0, len(layers), size)]
    worst = max(layers, key=lambda layer: 0.0 if math.isnan(x := level(layer.kappa)) else x)
    table = [["layer", *COLUMNS, "rank", "inputs that never vary"], *layer_rows(m)]
    return Chart(
        "layers",
        "Layers: conditioning of what each one sees",
        "The condition number κ of the matrix of a layer's inputs, with the column of ones that its bias sees, in "
        "forward order; what it would be without the mean (centered), with columns of equal size (scaled), with "
        "both, as batch normalization does (standardized), and as layer normalization does (rows normalized). Largest "
        f"as it is: {worst.kappa} in “{worst.label}”.",
        [_panel(panel, most) for panel in panels],
        table,
        wide=count > 1,
    )


def _panel(layers: Sequence[LayerConditioning], most: float) -> Any:
    decades = range(0, math.ceil(most) + 1, max(1, math.ceil(most / 4)))
    cells = [[(html.escape(layer.label), str(e)) for e in layer.kappas.values()] for layer in layers]
    figure = new_figure()
    figure.add_heatmap(
        x=COLUMNS,
        y=list(range(len(layers))),
        z=[[level(e) for e in layer.kappas.values()] for layer in layers],
        zmin=0,
        zmax=most,
        text=[[brief(e) for e in layer.kappas.values()] for layer in layers],
        texttemplate="%{text}",
        customdata=cells,
        hovertemplate="%{customdata[0]}<br>%{x}: κ = %{customdata[1]}<extra></extra>",
        xgap=1,
        ygap=1,
        meta=HEAT,
        colorbar={
            "orientation": "h",
            "thickness": 10,
            "y": 0,
            "yanchor": "top",
            "ypad": 8,
            "tickvals": list(decades),
            "ticktext": [f"κ = {number(10.0**d)}" if d == 0 else number(10.0**d) for d in decades],
        },
    )
    figure.update_layout(
        xaxis={
            "side": "top",
            "showgrid": False,
            "tickvals": COLUMNS,
            "ticktext": [column.replace(" n", "<br>n") for column in COLUMNS],
            "tickfont": {"size": 10},
        },
        yaxis={
            "tickvals": list(range(len(layers))),
            "ticktext": [html.escape(short(layer.label, 20)) for layer in layers],
            "tickfont": {"size": 11 if len(layers) > 20 else 13},
            "autorange": "reversed",
            "showgrid": False,
        },
        height=130 + len(layers) * (34 if len(layers) <= 20 else 17),
    )
    return figure
