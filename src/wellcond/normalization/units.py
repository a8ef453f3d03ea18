"""Dead and duplicate units: columns of activations that never vary, or are another one's multiple."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wellcond.normalization.rows import CONVOLUTIONS
from wellcond.problem import Problem

DEAD = 1e-6
"""A unit whose deviation is below this part of its own mean, or of the layer's root mean square, adds a constant in
float32, whose eps is 1e-7."""

DUPLICATE = 1e-6
"""Two units are one where the correlation of their activations is above 1 minus this, or below its negative."""

DIRECTIONS = 32
"""Random directions that columns are compared along. Of columns with correlation 1 − δ the signatures have 1 − δ' with
δ' within a factor of about two of δ."""

LONELY = 1.5
"""A unit that fires on one example is proportional to any other that fires on it alone; its squared deviations count
as those of so many examples at most. Two are not alike by chance."""

SEEING = (
    nn.Linear,
    *CONVOLUTIONS,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.modules.dropout._DropoutNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
)
"""What a layer's units are looked at in front of; behind dropout or a normalization they differ."""


@dataclass(frozen=True)
class Units:
    """The units of one layer, as what comes after it sees them.

    Attributes:
        layer: name of the layer that computes them, before their activation.
        seen_by: name of the module that sees them.
        count: how many units.
        dead: those that never vary over the data.
        duplicates: groups of units that are multiples of one another, up to a constant; the first of each stands
            for the others.
    """

    layer: str
    seen_by: str
    count: int
    dead: list[int] = field(default_factory=list)
    duplicates: list[list[int]] = field(default_factory=list)

    @property
    def spare(self) -> list[int]:
        """The dead units, and of each group of duplicates all but the first."""
        return sorted([*self.dead, *(j for group in self.duplicates for j in group[1:])])


def units_of(problem: Problem, seed: int = 0) -> list[Units]:
    """Dead and duplicate units of each layer whose activations another module sees, in forward order.

    A unit is an output of an `nn.Linear`, over all examples and tokens, or a channel of a convolution, over all
    examples and positions, behind the activation that follows. What the last layer computes, the data's own features
    and what no layer has computed (embeddings) are no units. One pass over the data; memory and time O(width), and
    the columns are compared along random directions.

    Args:
        problem: the network and its data.
        seed: of the directions.

    Source: symmetric units receive the same gradient and stay alike: Goodfellow, Bengio and Courville, "Deep
    Learning", section 8.4.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])), model[0].bias.fill_(-1.0)
    ...     _ = model[0].bias[0].fill_(-0.5)
    >>> x = torch.tensor([[1.0, 1.0], [2.0, 0.0], [4.0, 1.0]])
    >>> (units,) = units_of(Problem(model, nn.MSELoss(), (x, x[:, :1])))
    >>> units.layer, units.dead, units.duplicates
    ('0', [2], [[0, 1]])
    """
    columns: dict[tuple[str, str], _Columns] = {}
    producer: tuple[str, int] | None = None

    def record(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal producer
        if module is problem.model:  # a new batch
            producer = None
        x = args[0] if args else next(iter(kwargs.values()), None)
        if producer and isinstance(module, SEEING) and isinstance(x, Tensor) and x.numel() and not problem.is_input(x):
            along = _by_unit(x.detach().double(), producer[1], first=producer[0] in convolutions)
            if along is not None:
                columns.setdefault((producer[0], name), _Columns(producer[1], seed)).add(along)
        if width := _width(module):
            producer = name, width
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            producer = None

    convolutions = {name for name, m in problem.model.named_modules() if isinstance(m, CONVOLUTIONS)}
    problem.record_calls(nn.Module, record)
    found: dict[str, Units] = {}
    for (layer, seen_by), seen in columns.items():
        units = Units(layer, seen_by, seen.width, seen.dead(), seen.duplicates())
        if layer not in found or len(units.spare) > len(found[layer].spare):
            found[layer] = units
    return list(found.values())


class _Columns:
    """Moments of some columns and their products with random directions, from blocks of rows as they come."""

    def __init__(self, width: int, seed: int):
        self.width, self.rows = width, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.powers = torch.zeros(4, width, dtype=torch.float64)  # Σ(x − shift)ᵏ
        self.signature = torch.zeros(width, DIRECTIONS, dtype=torch.float64)
        self.of_ones = torch.zeros(DIRECTIONS, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Take up (width, n)."""
        if not self.rows:
            self.shift = x[:, :1].cpu()
        self.rows += x.shape[1]
        for block in x.cpu().split(2**16, 1):
            away = block - self.shift
            directions = torch.randn(block.shape[1], DIRECTIONS, dtype=torch.float64, generator=self.generator)
            self.signature += away @ directions
            self.of_ones += directions.sum(0)
            self.powers += torch.stack([away.pow(k).sum(1) for k in (1, 2, 3, 4)])

    def _central(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean beyond the shift, second and fourth central moment."""
        a, b, c, d = self.powers / self.rows
        return a, (b - a * a).clamp_min(0), (d - 4 * a * c + 6 * a * a * b - 3 * a**4).clamp_min(0)

    def _deviates(self) -> Tensor:
        away, variance, _ = self._central()
        mean = self.shift[:, 0] + away
        typical = (variance + mean.square()).mean().sqrt()
        return variance.sqrt() > DEAD * torch.maximum(mean.abs(), typical)

    def dead(self) -> list[int]:
        return (~self._deviates()).nonzero().flatten().tolist()

    def duplicates(self) -> list[list[int]]:
        """Groups in the order of their first members."""
        away, variance, fourth = self._central()
        examples = self.rows * variance.square() / fourth.clamp_min(1e-300)
        among = (self._deviates() & (examples > LONELY)).nonzero().flatten()
        signature = (self.signature - torch.outer(away, self.of_ones))[among]
        signature = signature / signature.norm(dim=1, keepdim=True).clamp_min(1e-300)
        groups: dict[int, list[int]] = {}
        first_of = list(range(len(among)))
        for start in range(0, len(among), 1024):
            alike = (signature[start : start + 1024] @ signature.T).abs() > 1 - DUPLICATE
            for i, j in (alike.nonzero() + torch.tensor([start, 0])).tolist():
                if j < i and first_of[i] == i:
                    first_of[i] = first_of[j]
                    groups.setdefault(first_of[j], [first_of[j]]).append(i)
        return [[int(among[i]) for i in group] for group in groups.values()]


def _width(module: nn.Module) -> int:
    """How many units a layer computes; 0 for what is none."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels
    if isinstance(module, nn.RNNBase):
        return (module.proj_size or module.hidden_size) * (1 + module.bidirectional)
    return 0


def _by_unit(x: Tensor, units: int, *, first: bool) -> Tensor | None:
    """(units, n): what each unit gave, found by its width among the dimensions; None where it is not there.

    Args:
        x: what a module sees.
        units: of the layer before.
        first: whether they were on dimension 1 when they were computed, as channels are, and come first where
            dimensions are flattened; else on the last.
    """
    places = [d for d in ((1, -1) if first else (-1, 1)) if x.ndim > 1 and x.shape[d] == units]
    if not places and x.ndim == 2 and x.shape[1] % units == 0:
        x = x.unflatten(1, (units, -1) if first else (-1, units))
        places = [1 if first else -1]
    return x.movedim(places[0], 0).reshape(units, -1) if places else None
