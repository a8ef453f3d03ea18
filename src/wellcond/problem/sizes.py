"""How large the autograd graphs of a problem are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

GRAPH_OVER_FORWARD = 4
"""A gradient's graph holds at most so many times what the forward pass holds: 1.0 to 2.2 times on fifteen networks."""


class Sizes:
    """Bytes of the graphs of each batch, measured on one and proportional to the examples of the others.

    Args:
        examples: of each batch, 1 or more.

    Attributes:
        measuring: whether an evaluation is made for its size alone.
    """

    def __init__(self, examples: Sequence[int]):
        self._examples, self.measuring = examples, False
        self._forward: float | None = None
        self._of: dict[Any, float] = {}

    @property
    def largest(self) -> int:
        """The batch with the most examples."""
        return max(range(len(self._examples)), key=self._examples.__getitem__)

    def forward(self, index: int, loss: Callable[[int], Any]) -> float:
        """Of a forward pass that `loss` makes of a batch, what it holds for a backward one."""
        if self._forward is None:
            self.measuring = True
            try:
                self._forward = graph_bytes(partial(loss, index)) / self._examples[index]
            finally:
                self.measuring = False
        return self._forward * self._examples[index]

    def graph(self, key: Any, index: int, build: Callable[[], Any], loss: Callable[[int], Any], room: float) -> float:
        """Of the graph that `build` makes: one is made and thrown away to be measured, unless there is room for every
        batch even if it holds several times what a forward pass does."""
        if key not in self._of:
            most = GRAPH_OVER_FORWARD * self.forward(index, loss) / self._examples[index]
            if most * sum(self._examples) <= room:
                return most * self._examples[index]
            self._of[key] = graph_bytes(build) / self._examples[index]
        return self._of[key] * self._examples[index]


def graph_bytes(build: Callable[[], Any]) -> float:
    """Bytes of the tensors that autograd saves for what `build` makes; infinite for networks that use torch.func, which
    does not say. The graph made here is thrown away: one with these hooks in it would call them in every product."""
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        try:
            storage = x.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        except RuntimeError:  # sparse, nested, or under forward AD: without a storage of its own
            seen[-id(x)] = (x._nnz() if "sparse" in str(x.layout) else x.numel()) * x.element_size()
        return x

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            build()
    except RuntimeError as error:
        if "saved tensor hooks" in str(error):
            return math.inf
        raise
    return sum(seen.values())
