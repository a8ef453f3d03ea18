"""Which rows a weight sees: those of all calls of its layers, and of all layers that share it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wellcond.normalization.covariance import Covariance
from wellcond.normalization.rows import (
    CONVOLUTIONS,
    LARGEST,
    PROJECTIONS,
    attention_inputs,
    attention_mixture,
    blocks,
    layer_normalized,
    rows_of_block,
)
from wellcond.private_torch import out_of_vmap
from wellcond.problem import Problem, out_of_memory

KINDS = (nn.Linear, *CONVOLUTIONS, nn.MultiheadAttention)
"""What is looked at."""

SMALLEST = 1e-130
"""Inputs below count as zero: the squares of others, and of a spread that is a rounding of them, float64 holds."""

_Key = tuple[int, str]


class Rows:
    """The rows that one weight sees.

    Attributes:
        name: of the first layer that used it.
        plain, normalized: as they are and layer-normalized.
        bias: whether a bias is added.
        is_input: whether every row is the data's own.
    """

    def __init__(self, name: str, widest: int):
        self.name, self.bias, self.is_input = name, False, True
        # Data are what they are; normalizing them rounds.
        self.plain, self.normalized = Covariance(widest, 0.0), Covariance(widest, 4 * torch.finfo(torch.float64).eps)

    def add(self, module: nn.Module, x: Tensor, *, bias: bool, is_input: bool) -> None:
        """Take up the rows that a call's input gives."""
        self.bias |= bias
        self.is_input &= is_input
        # Entries of a network's activations are the result of some roundings.
        rounding = 0.0 if is_input or not x.is_floating_point() else 4 * torch.finfo(x.dtype).eps
        # Each row of a linear layer sums to zero once it is layer-normalized.
        linear = not isinstance(module, CONVOLUTIONS)
        for block in blocks(module, x):
            self.plain.add(rows_of_block(module, block), rounding)
            block, amplification = layer_normalized(module, block)
            self.normalized.add(rows_of_block(module, block), rounding * amplification, sum_to_zero=linear)


class RowsSeen:
    """Collects the rows of every weight while the data pass through a network.

    Args:
        problem: the network and its data.
        widest: columns up to which a covariance is kept whole.
    """

    def __init__(self, problem: Problem, widest: int):
        self.problem, self.widest = problem, widest
        self.modules = {name: m for name, m in problem.model.named_modules() if isinstance(m, KINDS)}
        # Shared weights are one tensor only outside a measurement, which puts copies in their place.
        self._keys = {name: _keys(m) for name, m in self.modules.items()}
        self._rows: dict[_Key, Rows] = {}

    def call(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take up the rows of a call, for `Problem.record_calls`.

        Raises:
            ValueError: if they are not finite, or complex.
        """
        if not isinstance(module, nn.MultiheadAttention):
            x = args[0] if args else next(iter(kwargs.values()))
            self._add(name, module, {"": x}, module.bias is not None)
        else:
            self._add(name, module, attention_inputs(args, kwargs), module.in_proj_bias is not None)
            if type(module).forward is nn.MultiheadAttention.forward:  # another may call the module itself
                out = module.out_proj
                self._add(f"{name}.out_proj", out, {"": attention_mixture(module, args, kwargs)}, out.bias is not None)

    def by_name(self) -> list[tuple[str, Rows]]:
        """The rows of every weight that saw any, by the name of the first layer that used it, in order of first use."""
        found = []
        for key, rows in self._rows.items():
            name, slot = rows.name, key[1]
            if slot:
                packed = [self._rows[key[0], s] for s in PROJECTIONS if (key[0], s) in self._rows]
                if len(packed) == 3 and all(r is rows for r in packed):
                    if slot != PROJECTIONS[0]:
                        continue
                    slot = "in_proj"
                name = f"{name}.{slot}"
            found.append((name, rows))
        return found

    def never_called(self) -> list[str]:
        """Layers that no data passed through."""
        return [
            name if "" in keys else f"{name}.in_proj"
            for name, keys in self._keys.items()
            if not any(key in self._rows for key in keys.values())
        ]

    def _add(self, name: str, module: nn.Module, inputs: dict[str, Tensor], bias: bool) -> None:
        """Take up what each of a module's weights sees. Several that have always seen the same share their rows."""
        keys = self._keys[name]
        before = {slot: self._rows.get(keys[slot]) for slot in inputs}
        added: dict[tuple[int, int], tuple[Rows, Tensor]] = {}
        for slot, x in inputs.items():
            both = id(before[slot]), id(x)
            if both not in added:
                rows = before[slot] or Rows(name, self.widest)
                taken = any(rows is other for other, _ in added.values())
                added[both] = copy.deepcopy(rows) if taken else rows, x
            self._rows[keys[slot]] = added[both][0]
        for rows, x in added.values():
            x = _plain(name, x.detach())
            is_input = self.problem.is_input(x)
            x = _checked(name, x, is_input)
            if x.numel():  # an expert may get no tokens
                with memory_for(name, f"its inputs of shape {tuple(x.shape)}"):
                    rows.add(module, x, bias=bias, is_input=is_input)


@contextlib.contextmanager
def memory_for(name: str, what: str = "the figures of its inputs") -> Iterator[None]:
    """Turn a failure to get memory into one that names the layer.

    Raises:
        ValueError: out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            f"memory does not suffice for layer {name!r}: for {what}; give smaller batches, or a smaller `widest`, the "
            "number of columns up to which a layer's covariance is kept whole"
        ) from error


def _called(name: str) -> str:
    return f"layer {name}" if name else "the model, which is a layer itself,"


def _checked(name: str, x: Tensor, is_input: bool) -> Tensor:
    """What a layer sees, what has no square in float64 as zero.

    Raises:
        ValueError: for numbers that are complex or not finite, or whose squares overflow.
    """
    if x.is_complex():
        raise ValueError(f"{_called(name)} sees complex inputs; write them as real ones (torch.view_as_real)")
    # A sum that is finite proves it, and takes no memory; one that is not may have overflowed.
    if not bool(x.sum().isfinite() or torch.isfinite(x).all()):
        advice = "fix or drop them in the data" if is_input else "look for the overflow before it"
        raise ValueError(f"the inputs of {_called(name)} are not finite; {advice}")
    if x.dtype != torch.float64 or not x.numel():
        return x
    size = x.abs()
    if float(size.max()) > LARGEST:
        raise ValueError(
            f"the inputs of {_called(name)} reach {float(size.max()):.1g}, and above {LARGEST:g} their squares "
            "overflow; divide the data by a constant, or look for what grows before it"
        )
    return torch.where(size < SMALLEST, 0.0, x)


def _keys(module: nn.Module) -> dict[str, _Key]:
    """What stands for a module's weights: the parameters, and the module itself where they are computed."""
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.MultiheadAttention):
        weights = [own.get("in_proj_weight", own.get(f"{slot}_weight")) for slot in PROJECTIONS]
        return {slot: (id(w), slot) for slot, w in zip(PROJECTIONS, weights, strict=True)}
    return {"": (id(own.get("weight", module)), "")}


def _plain(name: str, x: Tensor) -> Tensor:
    """A tensor out of torch.func's wrappers, the dimensions that it maps over in front.

    Raises:
        ValueError: where this torch does not give it.
    """
    plain = out_of_vmap(x)
    if plain is None:
        raise ValueError(f"{_called(name)} is called by torch.func.vmap, and this torch keeps what it sees to itself")
    return plain
