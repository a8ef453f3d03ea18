"""What is kept between products inside `with problem:`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from wellcond.problem.heap import heap_kept


class Kept:
    """Graphs, matrices and copies that belong to the parameters as they are, while a `with problem:` block is open.

    Attributes:
        graphs: by (what, batch).
        matrices: by what.
        copies: of parameters, by id.
        bytes: of the graphs, and of what was kept elsewhere before.
    """

    def __init__(self, parameters: Sequence[Tensor], reserved: float = 0.0):
        self._parameters, self._reserved, self.bytes = parameters, reserved, reserved
        self.graphs: dict[tuple[Any, int], Any] = {}
        self.matrices: dict[Any, Tensor] = {}
        self.copies: dict[int, Tensor] = {}
        self._depth = 0
        self._versions: list[tuple[int, int]] = []
        self._block = contextlib.ExitStack()

    def open(self) -> bool:
        """Whether something may be kept.

        Raises:
            RuntimeError: if the parameters changed since the block began.
        """
        if self._depth and self._current_versions() != self._versions:
            raise RuntimeError("the parameters changed inside `with problem:`; leave the block before training on")
        return self._depth > 0

    def enter(self) -> None:
        """A block begins; it may be inside another."""
        if not self._depth:
            self._versions = self._current_versions()
            if self._parameters[0].device.type == "cpu":
                self._block.enter_context(heap_kept())
        self._depth += 1

    def leave(self) -> None:
        """A block ends; with the outermost, all that was kept."""
        self._depth -= 1
        if not self._depth:
            for held in (self.graphs, self.matrices, self.copies):
                held.clear()
            self.bytes = self._reserved
            self._block.close()

    def _current_versions(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), p._version) for p in self._parameters]


def graph_nodes(tensor: Tensor) -> Iterator[Any]:
    """The nodes of the autograd graph that a tensor hangs on, each once."""
    with torch._C.DisableTorchFunction():
        seen, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(parent for parent, _ in node.next_functions)
