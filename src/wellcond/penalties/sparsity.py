"""How sparse a model is: exact zeros, zero rows and zero columns of each parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from wellcond.display import Table, short


@dataclass(frozen=True)
class LayerSparsity:
    """One parameter's zeros.

    Attributes:
        name: of the parameter.
        shape: its shape.
        zeros: entries that are exactly zero.
        rows, columns: slices along the first and second dimension: output and input channels of a linear layer or a
            convolution, input and output channels of a transposed one; 0 for a vector.
        zero_rows, zero_columns: those that are zero altogether.
    """

    name: str
    shape: tuple[int, ...]
    zeros: int
    rows: int
    zero_rows: int
    columns: int
    zero_columns: int

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Sparsity:
    """The zeros of some parameters; printed, a table.

    Attributes:
        layers: one entry a parameter.
    """

    layers: tuple[LayerSparsity, ...]

    @property
    def zeros(self) -> int:
        """Entries that are exactly zero, in all."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def entries(self) -> int:
        """Entries, in all."""
        return sum(layer.entries for layer in self.layers)

    @property
    def fraction(self) -> float:
        """Of all entries, those that are zero."""
        return self.zeros / self.entries if self.entries else 0.0

    def __repr__(self) -> str:
        """A table of the tensors of two or more dimensions, with the vectors in one line."""
        weights = [layer for layer in self.layers if layer.rows]
        vectors = [layer for layer in self.layers if not layer.rows]
        rows = [
            (
                short(layer.name, 36),
                "×".join(map(str, layer.shape)),
                _share([layer]),
                f"{layer.zero_rows} of {layer.rows}",
                f"{layer.zero_columns} of {layer.columns}",
            )
            for layer in weights
        ]
        if len(rows) > 1:
            rows.append(("all of these", "", _share(weights), "", ""))
        if vectors:
            rows.append((f"{len(vectors)} vectors", "", _share(vectors), "", ""))
        return Table(["parameter", "shape", "zeros", "zero rows", "zero columns"], rows, words=range(5)).text()


def _share(layers: Sequence[LayerSparsity]) -> str:
    of = Sparsity(tuple(layers))
    return f"{of.zeros:,} of {of.entries:,} ({of.fraction:.1%})"


def sparsity(model: nn.Module) -> Sparsity:
    """The exact zeros of a model's parameters, a layer at a time; a tied weight counts once.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = model.weight.copy_(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    >>> sparsity(model)
    parameter  shape  zeros           zero rows  zero columns
    weight     2×3    4 of 6 (66.7%)  0 of 2     1 of 3

    Raises:
        TypeError: for anything but a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"got a {type(model).__name__}; give a torch.nn.Module, or ask a handle for its sparsity()")
    return sparsity_of(model.named_parameters())


def sparsity_of(named: Iterable[tuple[str, Tensor]]) -> Sparsity:
    """The same of any named tensors."""
    return Sparsity(tuple(_layer(name, p.detach()) for name, p in named))


def _layer(name: str, p: Tensor) -> LayerSparsity:
    zero = p == 0
    rows = columns = zero_rows = zero_columns = 0
    if p.dim() >= 2:
        rows, columns = p.shape[:2]
        zero_rows = int(zero.flatten(1).all(1).sum())
        zero_columns = int(zero.transpose(0, 1).flatten(1).all(1).sum())
    return LayerSparsity(name, tuple(p.shape), int(zero.sum()), rows, zero_rows, columns, zero_columns)
