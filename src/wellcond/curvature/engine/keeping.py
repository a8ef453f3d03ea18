"""Whether a batch's graph, or a compiled program, is kept between products inside `with problem:`, and for how long."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from wellcond.curvature.engine.batch import BatchMatrices, agree, product_by, streamed
from wellcond.curvature.engine.compiled import Program
from wellcond.curvature.engine.kept_graph import KeptGraph, Watch, Way
from wellcond.curvature.engine.sizes import Sizes
from wellcond.problem import Block, Problem, first_line, signature

MOST_PROGRAMS = 8
"""Programs of one operator and problem; batches of further shapes are multiplied without."""


class Kept:
    """What belongs to the parameters as they are, while a `with problem:` block is open.

    Attributes:
        ways: by (the operator's key, batch).
        matrices: by the operator's key.
    """

    def __init__(self) -> None:
        self.ways: dict[tuple[Any, int], Way] = {}
        self.matrices: dict[Any, Tensor] = {}

    @property
    def bytes(self) -> float:
        """Of what the ways hold."""
        return sum(way.bytes for way in self.ways.values())

    def clear(self) -> None:
        """Let all of it go, also where something still refers to this."""
        self.ways.clear()
        self.matrices.clear()


class Engine:
    """What is known of a problem's products, and what is kept of them in its blocks. It does not hold the problem.

    Attributes:
        one_by_one: keys of operators of which several products in one backward pass failed.
    """

    def __init__(self, problem: Problem):
        self.one_by_one: set[Any] = set()
        self._programs: dict[Any, dict[Any, Program | None]] = {}
        self._repeatable: dict[Any, bool] = {}
        self._sizes = Sizes(problem)
        self._blocks: dict[Block, Kept] = {}

    def kept(self, problem: Problem) -> Kept | None:
        """What is kept in the block that is open; None where none is."""
        block = problem.block
        if block is None:
            return None
        if block not in self._blocks:
            self._blocks[block] = Kept()
            block.callback(lambda: self._blocks.pop(block).clear())
        return self._blocks[block]

    def way(self, operator: BatchMatrices, index: int) -> Way | None:
        """The way to a batch's products that is kept; None where none is."""
        kept = self.kept(operator.problem)
        return kept.ways.get((operator.key, index)) if kept is not None else None

    def first_product(self, operator: BatchMatrices, index: int, v: Tensor) -> Tensor:
        """The product of a batch for which no way is kept; one is kept where that can be. Inside `evaluating`."""
        kept = self.kept(operator.problem)
        if kept is None:
            return streamed(operator, index, v)
        product = self._first_by_program(operator, index, v, kept) if operator.problem.compile else None
        return self._first_by_graph(operator, index, v, kept) if product is None else product

    def _first_by_program(self, operator: BatchMatrices, index: int, v: Tensor, kept: Kept) -> Tensor | None:
        """The streamed product, beside that of a program; None where there is no program, or no way to go by it."""
        program = self._program(operator, index, v)
        if program is None:
            return None
        try:
            way = program.way(operator, index, v, self._room(operator.problem))
            product = way.product(operator, index, v) if way else None
        except Exception as error:
            self._give_up_program(operator, index, f"it can't be compiled ({first_line(error)})")
            return None
        if way is None or product is None:
            return None
        expected = streamed(operator, index, v)
        if agree(product, expected):
            kept.ways[operator.key, index] = way
        else:
            self._give_up_program(operator, index, program.why_it_differs)
        return expected

    def _program(self, operator: BatchMatrices, index: int, v: Tensor) -> Program | None:
        programs = self._programs.setdefault(operator.key, {})
        shape = signature(operator.problem.batches[index])
        program = programs.get(shape)
        if shape not in programs or (program and not program.fits(operator.problem.parameters)):
            allowed = shape in programs or len(programs) < MOST_PROGRAMS
            programs[shape] = Program.of(operator, index, v) if allowed else None
        return programs[shape]

    def _give_up_program(self, operator: BatchMatrices, index: int, why: str) -> None:
        self._programs[operator.key][signature(operator.problem.batches[index])] = None
        warnings.warn(f"compile=True has no effect on a product any more: {why}", stacklevel=2)

    def _first_by_graph(self, operator: BatchMatrices, index: int, v: Tensor, kept: Kept) -> Tensor:
        problem, key = operator.problem, operator.key
        if not self._repeatable.get(key, True):
            return streamed(operator, index, v)
        room = self._room(problem)
        size = self._sizes.graph(problem, key, index, operator.batch_graph, room)
        if size > room:
            return streamed(operator, index, v)
        with Watch() as watch:
            graph = operator.batch_graph(index)
        way = KeptGraph(graph, size, watch.alone(graph.outputs))
        product = product_by(operator, graph, v, keep=True)
        if key not in self._repeatable:
            self._repeatable[key] = agree(way.product(operator, index, v), product)
            if not self._repeatable[key]:
                warnings.warn(
                    "products are streamed, also inside `with problem:`: by a kept graph they differ, since what the "
                    "network does in a backward pass is random or changes",
                    stacklevel=2,
                )
                return product
        kept.ways[key, index] = way
        return product

    def _room(self, problem: Problem) -> float:
        return problem.memory_limit - sum(kept.bytes for kept in self._blocks.values())


_ENGINES: WeakKeyDictionary[Problem, Engine] = WeakKeyDictionary()


def engine_of(problem: Problem) -> Engine:
    """A problem's, which lives as long as it."""
    if problem not in _ENGINES:
        _ENGINES[problem] = Engine(problem)
    return _ENGINES[problem]
