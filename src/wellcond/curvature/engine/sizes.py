"""How large the autograd graphs of a problem are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wellcond.problem import Problem, count_examples, graph_bytes

GRAPH_OVER_FORWARD = 4
"""Upper bound of the size of a gradient's graph over that of the forward pass: 1.0 to 2.2 times on fifteen networks."""

TOGETHER = 64, 2**24
"""Most products that share a backward pass, and most bytes of what it holds for them. On one idle core 64
columns took 45 ms instead of 233 for a residual network of 1,582 parameters, 250 instead of 486 for a transformer of
826 and 234 instead of 332 for a convolution of 562; with more bytes at once the last two became slower again."""


class Sizes:
    """Bytes of the graphs of each batch, measured on one and proportional to the examples of the others.

    Args:
        problem: whose graphs; it is not held.
    """

    def __init__(self, problem: Problem):
        self._examples = [max(1, count_examples(b)) for b in problem.batches]
        self._of: dict[Any, float] = {}

    def graph(self, problem: Problem, key: Any, index: int, build: Callable[[int], Any], room: float) -> float:
        """Bytes of the graph that `build` makes of a batch, inside `problem.evaluating()`: one is made and thrown away
        to be measured, unless there is room for every batch even if it holds several times what a forward pass does."""
        if key not in self._of:
            most = GRAPH_OVER_FORWARD * problem.largest_activations() / max(self._examples)
            if most * sum(self._examples) <= room:
                return most * self._examples[index]
            self._of[key] = graph_bytes(lambda: build(index)) / self._examples[index]
        return self._of[key] * self._examples[index]


def columns_at_once(problem: Problem) -> int:
    """How many products may share a backward pass, inside `problem.evaluating()`."""
    most, bytes_ = TOGETHER
    held = problem.largest_activations() + problem.size * problem.dtype.itemsize
    return min(most, int(bytes_ / (GRAPH_OVER_FORWARD * held)))
