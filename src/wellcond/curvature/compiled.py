"""Products traced once and compiled: what does not depend on the vector is computed once, the rest in fused kernels."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch._inductor
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from wellcond.curvature.places import Place, Terms
from wellcond.linalg import norm
from wellcond.parameters import unflatten

if TYPE_CHECKING:
    from wellcond.curvature.operator import CurvatureOperator

MOST_PROGRAMS = 8
"""Programs of one operator and problem; batches of further shapes are multiplied without."""

OPTIONS = {"pattern_matcher": False, "layout_optimization": False}
"""Of the compiler, on a CPU. Without them it adds a bias or another product inside each matrix product, after a copy,
and not in the loop that goes over the result anyway; and it turns the constants of convolutions to channels last anew
in every product: an MLP took 7.8 instead of 7.7 ms, two convolutions 25.8 instead of 21.4."""


def kept_product(operator: CurvatureOperator, index: int, v: Tensor) -> Tensor | None:
    """The product by what is kept of a compiled program: all that it takes, also outside `problem.evaluating()`."""
    problem = operator.problem
    program = _programs(operator).get(problem.signature(index))
    if program is None or not problem.already_kept(program.trust, index):
        return None
    kept = problem.already_kept(program.key, index)
    if kept is None:
        return None
    with problem.differentiating():
        return program.finish(kept, v)


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
    program = programs.get(shape)
    if shape not in programs or (program and not program.fits(problem.parameters)):
        program = _Program.of(operator, index, v) if shape in programs or len(programs) < MOST_PROGRAMS else None
        programs[shape] = program
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
    """The product of one batch as a pure function of what the modules hold, the batch, and the vector; except for the
    last matrix products, which write into the result and are not part of it.

    Attributes:
        first: the part of it that the vector does not enter, (held, batch) → constants.
        second: the rest, (constants, vector) → terms of the product.
        bytes: of the constants, beyond what the modules and the batch hold.
        random: whether it draws random numbers, which only the first part does.
        key, trust: under which constants are kept, and that they were held against the eager product.

    Args:
        operator: whose product.
        whole: (held, batch, vector) → terms.
        layout: of the terms, by parameter: how many are pairs of factors, and whether there is another.
    """

    def __init__(self, operator: CurvatureOperator, whole: fx.GraphModule, layout: Sequence[tuple[int, bool]]):
        self.key, self.trust = (operator.key, "compiled"), (operator.key, "trusted")
        self.first, self.second = _split(whole)
        self.random = any(_is_random(node) for node in whole.graph.nodes)
        self.bytes = 0
        self._parameters, self._layout = operator.parameters, layout
        self._strides = [p.stride() for p in operator.problem.parameters]
        self._whole, self._second = _Compiled(whole), _Compiled(self.second)

    @classmethod
    def of(cls, operator: CurvatureOperator, index: int, v: Tensor) -> _Program | None:
        """Trace the product of a batch; None, with a warning, where that can't be done."""
        operator._graph(index)  # which refuses, in words, what can't be measured
        held, tensors = operator.problem.inputs(index)
        places: list[Terms] = []

        def terms(*inputs: Tensor) -> list[Tensor]:
            places[:] = [Terms() for _ in operator.parameters]
            with operator.problem.substituting(index, inputs[: len(held)], inputs[len(held) : -1]):
                pieces = unflatten(inputs[-1], operator.parameters)
                operator._batch_product(places, operator._graph(index), pieces, keep=False)
            return [x for place in places for x in place.tensors]

        try:
            traced = make_fx(terms)(*held, *tensors, v)
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
        program = cls(operator, pure, [(len(x.products), x.summand is not None) for x in places])
        program.bytes = _bytes_beyond(program.constants(operator, index), [*held, *tensors])
        return program

    def fits(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the problem's parameters lie in memory as when it was traced."""
        return [p.stride() for p in parameters] == self._strides

    def product(self, operator: CurvatureOperator, index: int, v: Tensor) -> tuple[Tensor | None, str]:
        """The product, None if it is to be made eagerly; and why this program is of no use any more."""
        problem = operator.problem
        try:
            product = self._run(operator, index, v)
        except Exception as error:
            return None, f"it can't be compiled ({_first_line(error)})"
        if product is None or problem.already_kept(self.trust, index):
            return product, ""
        expected = operator._product_by(operator._graph(index), v, keep=False)
        if norm(product - expected) <= math.sqrt(torch.finfo(v.dtype).eps) * norm(expected):
            problem.kept(self.trust, index, lambda: True, lambda: 0)
            return product, ""
        if self.random:
            return expected, "it draws other random numbers than the eager one (measure with mode='eval' to have none)"
        return expected, "it differs from the eager one: what the network does depends on values, or has changed"

    def finish(self, kept: _Constants, v: Tensor) -> Tensor:
        """The product from the constants of a batch."""
        with torch.no_grad():
            return self._product(kept.second(*kept.tensors, v.contiguous()), v)

    def constants(self, operator: CurvatureOperator, index: int) -> Sequence[Tensor]:
        """What a batch's products have in common."""
        held, tensors = operator.problem.inputs(index)
        operator.problem.seed_batch(index)
        with torch.no_grad():
            constants: Sequence[Tensor] = self.first(*held, *tensors)
            return constants

    def _run(self, operator: CurvatureOperator, index: int, v: Tensor) -> Tensor | None:
        problem = operator.problem

        def build() -> _Constants:
            constants = self.constants(operator, index)
            return _Constants(constants, self._second.laid_out_as(*constants, v.contiguous()))

        kept = problem.kept(self.key, index, build, lambda: self.bytes)
        if kept is not None:
            return self.finish(kept, v)
        if self.random:  # compiled, its numbers would not be those of the eager product
            return None
        held, tensors = problem.inputs(index)
        with torch.no_grad():
            inputs = *held, *tensors, v.contiguous()
            return self._product(self._whole.laid_out_as(*inputs)(*inputs), v)

    def _product(self, terms: Iterable[Tensor], v: Tensor) -> Tensor:
        product, following = torch.empty_like(v), iter(terms)
        for part, (pairs, more) in zip(unflatten(product, self._parameters), self._layout, strict=True):
            place = Place(part)
            for _ in range(pairs):
                place.add_product(next(following), next(following))
            place.add_last(next(following) if more else None)
        return product


class _Constants(NamedTuple):
    """What a batch's products have in common, and the compiled program that takes it."""

    tensors: Sequence[Tensor]
    second: Callable[..., list[Tensor]]


class _Compiled:
    """A traced program, compiled without torch.compile, whose guards cost more than some products. What they would look
    at does not change inside `with problem:`, but how tensors lie in memory, which is asked when constants are made."""

    def __init__(self, program: fx.GraphModule):
        self._program = program
        self._compiled: dict[Any, Callable[..., list[Tensor]]] = {}

    def laid_out_as(self, *inputs: Tensor) -> Callable[..., list[Tensor]]:
        """The program for inputs of these shapes, strides and dtypes."""
        layout = tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        if layout not in self._compiled:
            options = OPTIONS if inputs[-1].device.type == "cpu" else None
            limit = sys.getrecursionlimit()
            try:
                # Without a context of its own the compiler would not look into its cache on disk.
                with torch.no_grad(), tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
                    compiled = torch._inductor.compile(copy.deepcopy(self._program), list(inputs), options)
            finally:
                sys.setrecursionlimit(limit)  # which the compiler raises
            self._compiled[layout] = compiled
        return self._compiled[layout]


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
