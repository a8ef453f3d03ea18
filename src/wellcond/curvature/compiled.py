"""Products traced once and compiled: what does not depend on the vector is computed once, the rest in fused kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

if TYPE_CHECKING:
    from wellcond.curvature.operator import CurvatureOperator

MOST = 8
"""Programs of one operator and problem; batches of further shapes are multiplied without."""


def compiled_product(operator: CurvatureOperator, index: int, pieces: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    """The product of one batch's matrix by a compiled program, inside `problem.evaluating()`; None where there is none.

    The first product of every batch is held against the eager one.
    """
    problem = operator.problem
    programs = problem.programs.setdefault(operator.key, {})
    shape = problem.signature(index)
    if shape not in programs:
        programs[shape] = _Program.of(operator, index, pieces) if len(programs) < MOST else None
    program = programs[shape]
    return None if program is None else program.product(operator, index, pieces)


class _Program:
    """The product of one batch as a pure function of what the modules hold, the batch, and the vector.

    Attributes:
        whole: that function.
        first: the part of it that the vector does not enter, (held, batch) → what the second needs.
        second: the rest, linear in the vector.
        bytes: of what the first part gives the second, beyond its inputs.
        random: whether it draws random numbers, which only the first part does.
    """

    def __init__(self, whole: fx.GraphModule, vectors: int):
        self.first, self.second = _split(whole, vectors)
        self.random = any(_is_random(node) for node in whole.graph.nodes)
        self.bytes = 0
        self._whole, self._second = _compiled(whole), _compiled(self.second)
        self._trusted: dict[int, bool] = {}

    @classmethod
    def of(cls, operator: CurvatureOperator, index: int, pieces: Sequence[Tensor]) -> _Program | None:
        """Trace the product of a batch; None, with a warning, where that can't be done."""
        operator._graph(index)  # which refuses, in words, what can't be measured
        held, tensors = operator.problem.inputs(index)
        inputs = [*held, *tensors, *pieces]

        def product(*inputs: Tensor) -> tuple[Tensor, ...]:
            end = len(inputs) - len(pieces)
            with operator.problem.substituting(index, inputs[: len(held)], inputs[len(held) : end]):
                return operator._batch_product(operator._graph(index), inputs[end:], keep=False)

        try:
            traced = make_fx(product)(*inputs)
            # Twice: autograd runs in the first, in-place operations become pure in the second.
            with torch.no_grad():
                pure = make_fx(torch.func.functionalize(traced))(*inputs)
        except Exception as error:
            _warn(f"it can't be traced ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
            return None
        pure.graph.eliminate_dead_code(_matters)
        pure.recompile()
        program = cls(pure, len(pieces))
        program.bytes = _bytes_beyond(program._constants(operator, index), [*held, *tensors])
        return program

    def product(self, operator: CurvatureOperator, index: int, pieces: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        if self._trusted.get(index) is False:
            return None
        try:
            parts = self._run(operator, index, pieces)
        except Exception as error:
            self._trusted = dict.fromkeys(range(len(operator.problem.batches)), False)
            _warn(f"it can't be compiled ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
            return None
        if parts is not None and index not in self._trusted:
            expected = operator._batch_product(operator._graph(index), pieces, keep=False)
            self._trusted[index] = _agree(parts, expected)
            if not self._trusted[index]:
                _warn(f"on batch {index} it differs from the eager product: its way depends on values")
                return expected
        return parts

    def _run(self, operator: CurvatureOperator, index: int, pieces: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        problem = operator.problem
        constants = problem.kept(
            (operator.key, "compiled"), index, lambda: self._constants(operator, index), lambda: self.bytes
        )
        with torch.no_grad(), torch.compiler.set_stance("default"):
            if constants is not None:
                return self._second(*constants, *pieces)
            if self.random:  # its numbers would not be those of the eager product
                return None
            held, tensors = problem.inputs(index)
            return self._whole(*held, *tensors, *pieces)

    def _constants(self, operator: CurvatureOperator, index: int) -> tuple[Tensor, ...]:
        held, tensors = operator.problem.inputs(index)
        operator.problem.seed_batch(index)
        with torch.no_grad():
            return self.first(*held, *tensors)


def _compiled(program: fx.GraphModule) -> Callable[..., Any]:
    return torch.compile(program, fullgraph=True, dynamic=False)


def _split(whole: fx.GraphModule, vectors: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Divide a program at where its last inputs, the vectors, enter."""
    inputs = [node for node in whole.graph.nodes if node.op == "placeholder"]
    after = set(inputs[len(inputs) - vectors :])
    for node in whole.graph.nodes:
        if node.op == "output" or any(source in after for source in node.all_input_nodes):
            after.add(node)
    between = [node for node in whole.graph.nodes if node not in after and any(user in after for user in node.users)]
    first, second = fx.Graph(), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in whole.graph.nodes:
        if node not in after:
            copied[node] = first.node_copy(node, copied.__getitem__)
    first.output(tuple(copied[node] for node in between))
    moved = {node: second.placeholder(node.name) for node in between}
    for node in whole.graph.nodes:
        if node in after:
            moved[node] = second.node_copy(node, moved.__getitem__)
    return fx.GraphModule(whole, first), fx.GraphModule(whole, second)


def _matters(node: fx.Node) -> bool:
    """Whether a node does something even where nobody uses its result."""
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or bool(schema and schema.is_mutable)


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _agree(parts: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    eps = max(torch.finfo(x.dtype).eps for x in expected)
    error = sum(float((a - b).double().square().sum()) for a, b in zip(parts, expected, strict=True))
    return error <= eps * sum(float(x.double().square().sum()) for x in expected)


def _bytes_beyond(tensors: Sequence[Tensor], known: Sequence[Tensor]) -> int:
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    for x in known:
        storages.pop(x.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _warn(why: str) -> None:
    warnings.warn(f"compile=True has no effect on a product: {why}", stacklevel=2)
