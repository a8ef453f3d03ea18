"""Which rows a weight sees: those of all calls of its layers, and of all layers that share it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wellcond.normalization.covariance import Covariance, Factor, WholeCovariance
from wellcond.normalization.moments import LARGEST, Moments
from wellcond.normalization.rows import (
    CONVOLUTIONS,
    PROJECTIONS,
    attention_inputs,
    attention_mixture,
    blocks,
    layer_normalized,
    rows_of_block,
)
from wellcond.problem import Problem, out_of_memory

KINDS = (nn.Linear, *CONVOLUTIONS, nn.MultiheadAttention)
"""What is looked at."""

SMALLEST = 1e-130
"""Inputs below count as zero: the squares of others, and of a spread that is a rounding of them, float64 holds."""

_Key = tuple[int, str]


class Rows:
    """Moments of the rows that one weight sees, as they are and layer-normalized.

    Attributes:
        plain, normalized: the moments of each group, once all rows are in.
        groups: how many matrices these are.
        bias: whether a bias is added.
        is_input: whether every row is the data's own.
        rounding, normalized_rounding: relative accuracy of both: data are what they are, what a network computes is
            rounded.
        resolved: whether another pass would tell nothing more.
    """

    def __init__(self, widest: int):
        self.widest, self.groups = widest, 0
        self.bias, self.is_input = False, True
        # Data are what they are; normalizing them rounds.
        self.rounding, self.normalized_rounding = 0.0, 4 * torch.finfo(torch.float64).eps
        self.plain: list[Moments] = []
        self.normalized: list[Moments] = []
        self._covariances: dict[bool, Covariance] = {}

    def add(self, module: nn.Module, x: Tensor, *, bias: bool, is_input: bool) -> None:
        """Take up the rows that a call's input gives."""
        self.bias |= bias
        self.is_input &= is_input
        rounding = 0.0
        if not is_input and x.is_floating_point():
            # Entries of a network's activations are the result of some roundings.
            rounding = 4 * torch.finfo(x.dtype).eps
            self.rounding = max(self.rounding, rounding)
        # Each row of a linear layer sums to zero once it is layer-normalized.
        linear = not isinstance(module, CONVOLUTIONS)
        for block in blocks(module, x):
            for normalized in (False, True):
                if self.plain and normalized not in self._covariances:
                    continue
                if normalized:
                    block, amplification = layer_normalized(module, block)
                    self.normalized_rounding = max(self.normalized_rounding, rounding * amplification)
                for rows in rows_of_block(module, block):
                    if normalized not in self._covariances:
                        self.groups, _, width = rows.shape
                        self._covariances[normalized] = WholeCovariance(
                            self.groups, width, self.widest, sum_to_zero=normalized and linear
                        )
                    self._covariances[normalized].add(rows)

    def finish(self) -> None:
        """Make the moments. What they don't resolve the same rows will, if all of them are added again."""
        unresolved: dict[bool, Covariance] = {}
        for normalized, covariance in self._covariances.items():
            rounding = self.normalized_rounding if normalized else self.rounding
            moments = [covariance.moments(group, rounding) for group in range(self.groups)]
            if normalized:
                self.normalized = moments
            else:
                self.plain = moments
            if not all(m.resolved for m in moments):
                unresolved[normalized] = Factor(*covariance.shape, sum_to_zero=covariance.sum_to_zero)
        self._covariances = unresolved

    @property
    def resolved(self) -> bool:
        return not self._covariances


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
        self._names: dict[_Key, str] = {}

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

    def finish(self) -> bool:
        """Make the moments of what was seen; False if some need the same calls once more."""
        distinct = {id(rows): (name, rows) for name, rows in self.by_name()}.values()
        for name, rows in distinct:
            with memory_for(name):
                rows.finish()
        return all(rows.resolved for _, rows in distinct)

    def by_name(self) -> list[tuple[str, Rows]]:
        """The rows of every weight that saw any, by the name of the first layer that used it, in order of first use."""
        found = []
        for key, rows in self._rows.items():
            name, slot = self._names[key], key[1]
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
        added: dict[tuple[int, int], Rows] = {}
        for slot, x in inputs.items():
            mine, both = before[slot], (id(before[slot]), id(x))
            if both not in added:
                if mine is None:
                    mine = Rows(self.widest)
                elif any(id(mine) == other for other, _ in added):
                    mine = copy.deepcopy(mine)
                added[both] = mine
            if keys[slot] not in self._names:
                self._names[keys[slot]] = name
            self._rows[keys[slot]] = added[both]
        by_tensor = {id(x): x for x in inputs.values()}
        for (_, tensor), rows in added.items():
            x = _plain(by_tensor[tensor].detach())
            if x.is_complex():
                raise ValueError(f"{_called(name)} sees complex inputs; write them as real ones (torch.view_as_real)")
            is_input = self.problem.is_input(x)
            # A sum that is finite proves it at a third of the cost; one that is not may have overflowed.
            if not bool(x.sum().isfinite() or torch.isfinite(x).all()):
                advice = "mend or drop them in the data" if is_input else "look for the overflow before it"
                raise ValueError(f"the inputs of {_called(name)} are not finite; {advice}")
            if x.dtype == torch.float64 and x.numel():
                x = _with_squares(name, x)
            if x.numel() and not (rows.plain and rows.resolved):  # an expert may get no tokens
                with memory_for(name, f"its inputs of shape {tuple(x.shape)}"):
                    rows.add(module, x, bias=bias, is_input=is_input)


@contextlib.contextmanager
def memory_for(name: str, what: str = "the figures of its inputs") -> Iterator[None]:
    """Turn a failure to get memory into one that names the layer.

    Raises:
        ValueError: where memory ends.
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


def _with_squares(name: str, x: Tensor) -> Tensor:
    """x in float64, what has no square there as zero.

    Raises:
        ValueError: for numbers whose squares overflow.
    """
    size = x.abs()
    if float(size.max()) > LARGEST:
        raise ValueError(
            f"the inputs of {_called(name)} reach {float(size.max()):.1g}, and above {LARGEST:g} their squares "
            "overflow; divide the data by a constant, or look for what grows before it"
        )
    return torch.where(size < SMALLEST, 0.0, x)


def _keys(module: nn.Module) -> dict[str, _Key]:
    """What stands for a module's weights: the parameters, and the module itself where they are computed."""
    if isinstance(module, nn.MultiheadAttention):
        weights = (
            [module.in_proj_weight] * 3
            if module._qkv_same_embed_dim
            else [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
        )
        return {slot: (id(w), slot) for slot, w in zip(PROJECTIONS, weights, strict=True)}
    return {"": (id(module._parameters.get("weight", module)), "")}


def _plain(x: Tensor) -> Tensor:
    """A tensor out of torch.func's wrappers, the dimensions that it maps over in front."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        mapped = torch._C._functorch.maybe_get_bdim(x)
        x = torch._C._functorch.get_unwrapped(x)
        x = x.movedim(mapped, 0) if mapped >= 0 else x
    return x
