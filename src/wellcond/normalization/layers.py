"""Conditioning of what a layer sees: the extended hidden matrix of theory section 5.1, from one pass over the data.

While the data pass, `RowsSeen` (collecting.py) makes rows of every call (rows.py) and gives them to a covariance
(covariance.py, for wide ones sketch.py). Its moments (moments.py) make the figures (figures.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from wellcond.display import Table
from wellcond.linalg import Estimate
from wellcond.normalization.collecting import KINDS, Rows, RowsSeen, memory_for
from wellcond.normalization.figures import NORMALIZATIONS, Figures
from wellcond.normalization.moments import ColumnMoments
from wellcond.problem import Problem, check_problem

WIDEST = 2048
"""Up to this many columns a layer's covariance is kept whole: 34 MB of it, as much of rows on their way, and both again
of layer-normalized rows."""


UNSEEN = Estimate.undefined("no data pass through this layer")
NOTHING = torch.empty(0, dtype=torch.float64)


class NoLayersError(ValueError):
    """The network has none of the layers that are looked at."""


@dataclass(frozen=True)
class LayerConditioning:
    """κ of a layer's extended hidden matrix Ĥ = [1 H], as it is and under normalizations.

    A row is an example of a linear layer (a token, a time step), a patch of a convolution. κ is the ratio of the
    extreme singular values that are not zero; the mean, deviation and root mean square are those of a column.

    Attributes:
        name: of the module; of an `nn.MultiheadAttention` "….in_proj", or "….q_proj", "….k_proj" and "….v_proj" where
            they see different inputs, and "….out_proj".
        rows, columns: of Ĥ; the column of ones counts where the layer has a bias. No rows where no data pass through.
        rank: number of singular values that are not zero to rounding; a lower bound where `kappa` is one.
        constant: inputs that never vary, the dead units of the layer before.
        is_input: whether the layer sees the data themselves.
        kappa: as it is.
        centered: with the mean taken off each column.
        scaled: each column divided by its root mean square.
        standardized: centered and divided by the standard deviation, what batch normalization does.
        row_normalized: with rows of mean 0 and variance 1, what layer normalization does: each row by itself; of a
            convolution each example over channels and positions, before it is padded.
        largest: the largest eigenvalue of HᵀH/N.
        mean_share: how much of it the mean makes, 0 to 1; where it is an interval, of its lower end.
        mean, deviation: (d,), of each column of H.
        spectra: the eigenvalues of ĤᵀĤ/N, falling, by normalization ("as it is", "centered", "scaled",
            "standardized", "row normalized"); those of a sketch where `kappa` is a bound.
        group: which group of a grouped convolution this is.
        groups: of a grouped convolution all groups, each a matrix of its own; this one is that with the largest κ.
    """

    name: str
    rows: int = 0
    columns: int = 0
    rank: int = 0
    constant: int = 0
    is_input: bool = False
    kappa: Estimate = UNSEEN
    centered: Estimate = UNSEEN
    scaled: Estimate = UNSEEN
    standardized: Estimate = UNSEEN
    row_normalized: Estimate = UNSEEN
    largest: Estimate = UNSEEN
    mean_share: float = 0.0
    mean: Tensor = field(default=NOTHING, repr=False, compare=False)
    deviation: Tensor = field(default=NOTHING, repr=False, compare=False)
    spectra: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    group: int = 0
    groups: tuple[LayerConditioning, ...] = field(default=(), repr=False, compare=False)

    @property
    def label(self) -> str:
        """The layer's name; the network itself has none."""
        return self.name or "(model)"

    @property
    def kappas(self) -> dict[str, Estimate]:
        """Every κ by what is done to the matrix, in the order of the tables."""
        kappas = self.kappa, self.centered, self.scaled, self.standardized, self.row_normalized
        return dict(zip(("as it is", "centered", "scaled", "standardized", "rows normalized"), kappas, strict=True))


class Layers(list[LayerConditioning]):
    """A list that is a table in a notebook."""

    def _repr_html_(self) -> str:
        headings = ["layer", "κ as it is", "centered", "scaled", "standardized", "rows normalized", "rank"]
        rows = [(e.label, *map(str, e.kappas.values()), f"{e.rank} of {e.columns}") for e in self]
        return Table(headings, rows).html()


def layer_conditioning(problem: Problem, *, widest: int = WIDEST) -> list[LayerConditioning]:
    """κ of what every linear layer, convolution and attention projection sees, in forward order.

    One pass over the data; for each layer its rows where they are few, else their R factor in float64. κ as it is has a
    relative error of about that of κ standardized times rounding, wherever the mean is; its interval holds that. All
    calls of a layer, and of layers that share its weight, give rows to one matrix, which has the first one's name.
    Layers that no data pass through come last, with no rows and figures that are not defined. Inputs below 1e-130 count
    as zero.

    Args:
        problem: the network and its data.
        widest: above this many columns, and rows, a layer is sketched along up to 256 random directions: its mean and
            deviation are exact, its κ is "at least" what the sketch proves. Fewer rows are kept, if they fit 268 MB,
            and exact.

    Raises:
        NoLayersError: if there is no `nn.Linear`, `nn.Conv1d/2d/3d` or `nn.MultiheadAttention` (a ValueError).
        ValueError: if the inputs of a layer are not finite, above 1e150 or complex, or memory does not suffice for
            them, naming it.

    Source: theory, sections 5.1 and 5.2.

    >>> import torch
    >>> x = torch.tensor([[1.0, 10.0], [1.0, 12.0], [3.0, 10.0], [3.0, 12.0]])
    >>> problem = Problem(torch.nn.Linear(2, 1), torch.nn.MSELoss(), (x, torch.zeros(4, 1)))
    >>> (layer,) = layer_conditioning(problem)
    >>> print(layer.kappa, layer.centered, layer.standardized)
    127 1 1
    """
    check_problem(problem)
    if not isinstance(widest, int) or widest < 1:
        raise ValueError(f"got widest={widest!r}; it is a number of columns, at least 1")
    seen = RowsSeen(problem, widest)
    if not seen.modules:
        raise NoLayersError(
            f"{type(problem.model).__name__} has none of the layers that are looked at: nn.Linear, nn.Conv1d, "
            "nn.Conv2d, nn.Conv3d, nn.MultiheadAttention; wc.conditioning(wc.Hessian(problem)) measures any network"
        )
    problem.record_calls(KINDS, seen.call)
    found = [_figures(name, rows) for name, rows in seen.by_name()]
    return Layers([*found, *map(LayerConditioning, seen.never_called())])


def _figures(name: str, rows: Rows) -> LayerConditioning:
    with memory_for(name):
        both = zip(rows.plain.moments(), rows.normalized.moments(), strict=True)
        groups = [_of_group(name, rows, group, *moments) for group, moments in enumerate(both)]
    if not groups:  # called, but with no rows, as an expert that gets no tokens
        return LayerConditioning(name)
    if len(groups) == 1:
        return groups[0]
    worst = max(groups, key=lambda layer: layer.kappa.low if layer.kappa.defined else 0.0)
    return replace(worst, groups=tuple(groups))


def _of_group(name: str, rows: Rows, group: int, m: ColumnMoments, normalized: ColumnMoments) -> LayerConditioning:
    figures = Figures(m, rows.bias, rows.plain.rounding)
    by_row = Figures(normalized, rows.bias, rows.normalized.rounding)
    largest = figures.largest()
    spectra = {name.replace("_", " "): figures.spectrum(name) for name in NORMALIZATIONS}
    return LayerConditioning(
        name=name,
        rows=m.rows,
        columns=len(m.mean) + rows.bias,
        rank=min(figures.rank + m.beyond, m.rows),
        constant=int((~m.varies).sum()),
        is_input=rows.is_input,
        kappa=figures.kappa("as_it_is"),
        centered=figures.kappa("centered"),
        scaled=figures.kappa("scaled"),
        standardized=figures.kappa("standardized"),
        row_normalized=by_row.kappa("as_it_is"),
        largest=largest,
        mean_share=min(1.0, float(m.mean @ m.mean) / max(largest.value, 1e-300)),
        mean=m.mean,
        deviation=m.deviation,
        spectra=spectra | {"row normalized": by_row.spectrum("as_it_is")},
        group=group,
    )
