"""Products traced once and compiled: what does not depend on the vector is computed once, the rest in fused kernels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from wellcond.linalg import norm
from wellcond.parameters import flatten, unflatten

if TYPE_CHECKING:
    from wellcond.curvature.operator import CurvatureOperator

MOST_PROGRAMS = 8
"""Programs of one operator and problem; batches of further shapes are multiplied without."""


def kept_product(operator: CurvatureOperator, index: int, v: Tensor) -> Tensor | None:
    """The product by what is kept of a compiled program: all that it takes, also outside `problem.evaluating()`."""
    problem = operator.problem
    program = _programs(operator).get(problem.signature(index))
    if program is None or not problem.already_kept(program.trust, index):
        return None
    constants = problem.already_kept(program.key, index)
    return None if constants is None else program.finish(constants, v)


def compiled_product(operator: CurvatureOperator, index: int, v: Tensor) -> Tensor | None:
    """The product of one batch's matrix by a compiled program, inside `problem.evaluating()`; None where there is none.

    Only inside `with problem:`, where nothing changes: a program knows the parameters, buffers and batch as they come,
    but all else in the network as it was traced. So the first product of every batch in a block is held against the
    eager one.
    """
    problem, programs = operator.problem, _programs(operator)
    if not problem.keeping:
        return None
    shape = problem.signature(index)
    if shape not in programs:
        programs[shape] = _Program.of(operator, index, v) if len(programs) < MOST_PROGRAMS else None
    program = programs[shape]
    if program is None:
        return None
    product, why = program.product(operator, index, v)
    if why:
        programs[shape] = None
        warnings.warn(f"compile=True has no effect on a product any more: {why}", stacklevel=2)
    return product


def _programs(operator: CurvatureOperator) -> dict[Any, _Program | None]:
    programs: dict[Any, _Program | None] = operator.problem.programs.setdefault(operator.key, {})
    return programs


class _Program:
    """The product of one batch as a pure function of what the modules hold, the batch, and the vector.

    Attributes:
        first: the part of it that the vector does not enter, (held, batch) → constants.
        second: the rest, (constants, vector) → product.
        bytes: of the constants, beyond what the modules and the batch hold.
        random: whether it draws random numbers, which only the first part does.
        key, trust: under which constants are kept, and that they were held against the eager product.
    """

    def __init__(self, key: Any, whole: fx.GraphModule):
        self.key, self.trust = (key, "compiled"), (key, "trusted")
        self.first, self.second = _split(whole)
        self.random = any(_is_random(node) for node in whole.graph.nodes)
        self.bytes = 0
        self._whole, self._second = _compiled(whole), _compiled(self.second)

    @classmethod
    def of(cls, operator: CurvatureOperator, index: int, v: Tensor) -> _Program | None:
        """Trace the product of a batch; None, with a warning, where that can't be done."""
        operator._graph(index)  # which refuses, in words, what can't be measured
        held, tensors = operator.problem.inputs(index)

        def product(*inputs: Tensor) -> Tensor:
            with operator.problem.substituting(index, inputs[: len(held)], inputs[len(held) : -1]):
                pieces = unflatten(inputs[-1], operator.parameters)
                return flatten(operator._batch_product(operator._graph(index), pieces, keep=False))

        try:
            traced = make_fx(product)(*held, *tensors, v)
            # Twice: autograd runs in the first, in-place operations become pure in the second.
            with torch.no_grad():
                pure = make_fx(torch.func.functionalize(traced))(*held, *tensors, v)
        except Exception as error:
            warnings.warn(
                f"compile=True has no effect on a product: it can't be traced ({_first_line(error)})", stacklevel=2
            )
            return None
        pure.graph.eliminate_dead_code(_matters)
        pure.recompile()
        program = cls(operator.key, pure)
        program.bytes = _bytes_beyond(program.constants(operator, index), [*held, *tensors])
        return program

    def product(self, operator: CurvatureOperator, index: int, v: Tensor) -> tuple[Tensor | None, str]:
        """The product, None if it is to be made eagerly; and why this program is of no use any more."""
        problem = operator.problem
        try:
            product = self._run(operator, index, v)
        except Exception as error:
            return None, f"it can't be compiled ({_first_line(error)})"
        if product is None or problem.already_kept(self.trust, index):
            return product, ""
        pieces = unflatten(v, operator.parameters)
        expected = flatten(operator._batch_product(operator._graph(index), pieces, keep=False))
        if norm(product - expected) <= math.sqrt(torch.finfo(v.dtype).eps) * norm(expected):
            problem.kept(self.trust, index, lambda: True, lambda: 0)
            return product, ""
        if self.random:
            return expected, "it draws other random numbers than the eager one (measure with mode='eval' to have none)"
        return expected, "it differs from the eager one: what the network does depends on values, or has changed"

    def finish(self, constants: Sequence[Tensor], v: Tensor) -> Tensor:
        """The product from the constants of a batch."""
        with torch.no_grad(), torch.compiler.set_stance("default"):
            product: Tensor = self._second(*constants, v)
            return product

    def constants(self, operator: CurvatureOperator, index: int) -> Sequence[Tensor]:
        """What a batch's products have in common."""
        held, tensors = operator.problem.inputs(index)
        operator.problem.seed_batch(index)
        with torch.no_grad():
            constants: Sequence[Tensor] = self.first(*held, *tensors)
            return constants

    def _run(self, operator: CurvatureOperator, index: int, v: Tensor) -> Tensor | None:
        problem = operator.problem
        constants = problem.kept(self.key, index, lambda: self.constants(operator, index), lambda: self.bytes)
        if constants is not None:
            return self.finish(constants, v)
        if self.random:  # compiled, its numbers would not be those of the eager product
            return None
        held, tensors = problem.inputs(index)
        with torch.no_grad(), torch.compiler.set_stance("default"):
            product: Tensor = self._whole(*held, *tensors, v)
            return product


def _compiled(program: fx.GraphModule) -> Callable[..., Any]:
    return torch.compile(program, fullgraph=True, dynamic=False)


def _split(whole: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Divide a program at where its last input, the vector, enters."""
    after = {[node for node in whole.graph.nodes if node.op == "placeholder"][-1]}
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


def _bytes_beyond(tensors: Sequence[Tensor], known: Sequence[Tensor]) -> int:
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    for x in known:
        storages.pop(x.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
