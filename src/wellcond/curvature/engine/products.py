"""Products of a problem's matrices with vectors.

`multiply` sums over batches. Outside `with problem:` a batch's product is streamed: the operator makes the batch's
graph and differentiates it (`batch.py`). Inside, the first product of each batch is streamed too, and a faster way is
looked for: a program, traced and compiled once for each shape of batch where `compile=True` (`compiled.py`), else the
graph itself, where `memory_limit` has room for it (`sizes.py`). A way must first give the streamed product: a program
in every block, since it knows the network as it was traced; a graph once for each operator, since every block makes a
new one. A way that differs is given up with a warning. What passes is kept until the block ends (`kept.py`) and makes
all later products of the batch; where nothing of the user's runs in them, without isolating the network.

What lasts longer than a block, such as compiled programs and the sizes of graphs, is kept for as long as the problem
lives.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from wellcond.curvature.engine.batch import BatchMatrices, agree, product_by, streamed
from wellcond.curvature.engine.compiled import Program
from wellcond.curvature.engine.kept import Kept, KeptGraph, Watch, Way
from wellcond.curvature.engine.sizes import Sizes, columns_at_once
from wellcond.problem import Block, Problem, first_line, signature

MOST_PROGRAMS = 8
"""Programs of one operator and problem; batches of further shapes are multiplied without."""


def multiply(operator: BatchMatrices, v: Tensor) -> Tensor:
    """The product of the mean of an operator's matrices with a vector, (n,)."""
    problem, engine = operator.problem, _engine_of(operator.problem)
    total = None
    with contextlib.ExitStack() as stack:
        for index, weight in enumerate(problem.weights):
            way = engine.way(operator, index)
            if way is not None and way.alone:
                with problem.differentiating():
                    part = way.product(operator, index, v)
            else:
                stack.enter_context(problem.evaluating())
                part = way.product(operator, index, v) if way else engine.first_product(operator, index, v)
            if total is not None:
                total.add_(part, alpha=weight)
            else:
                total = part if weight == 1 else part.mul_(weight)
            if operator.on_batch is not None and index + 1 < len(problem.weights):
                operator.on_batch((index + 1) / len(problem.weights))
    assert total is not None
    return total


def multiply_columns(operator: BatchMatrices, V: Tensor, first: Tensor, done: Callable[[int], None]) -> Tensor | None:
    """The products with all columns of V, (n, k), several in one backward pass, which pays where the network is so
    small that most of a product is overhead; None where torch can't do that for this network, or comes to something
    else.

    Args:
        operator: whose matrix.
        V: the columns.
        first: the product with the first of them, for comparison.
        done: called with the number of products made since the last call; the first column's does not count again.
    """
    one_by_one = _engine_of(operator.problem).one_by_one
    if operator.problem.compile or operator.key in one_by_one:
        return None
    products = _together(operator, V, done)
    if products is None or not agree(products[:, 0], first, 1e3 * torch.finfo(first.dtype).eps):
        one_by_one.add(operator.key)
        return None
    return products


def kept_matrix(operator: BatchMatrices, form: Callable[[], Tensor]) -> Tensor:
    """The operator's matrix, which `form` makes, kept for the rest of a `with problem:` block; a copy of it."""
    kept = _engine_of(operator.problem).kept(operator.problem)
    if kept is None:
        return form()
    if operator.key not in kept.matrices:
        kept.matrices[operator.key] = form()
    return kept.matrices[operator.key].clone()


class _Engine:
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


_ENGINES: WeakKeyDictionary[Problem, _Engine] = WeakKeyDictionary()


def _engine_of(problem: Problem) -> _Engine:
    if problem not in _ENGINES:
        _ENGINES[problem] = _Engine(problem)
    return _ENGINES[problem]


def _together(operator: BatchMatrices, V: Tensor, done: Callable[[int], None]) -> Tensor | None:
    problem, engine, parts = operator.problem, _engine_of(operator.problem), []
    with problem.evaluating(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # an operation that goes one by one
        at_once = columns_at_once(problem)
        if at_once < 2:
            return None
        for chunk in V.split(at_once, dim=1):
            total, rows = torch.zeros_like(chunk), chunk.T.contiguous()
            for index, weight in enumerate(problem.weights):
                way = engine.way(operator, index)
                try:
                    product = way.product(operator, index, rows) if way else streamed(operator, index, rows)
                except RuntimeError:
                    return None
                total.add_(product.T, alpha=weight)
            parts.append(total)
            done(chunk.shape[1] - (len(parts) == 1))
    return torch.cat(parts, dim=1)
