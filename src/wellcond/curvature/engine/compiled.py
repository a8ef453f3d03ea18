"""Products traced once and compiled: what does not depend on the vector is computed once, the rest in fused kernels."""

from __future__ import annotations

import copy
import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from wellcond import private_torch
from wellcond.curvature.engine.batch import BatchMatrices, product_by
from wellcond.curvature.engine.kept_graph import Way
from wellcond.problem import first_line

OPTIONS = {"pattern_matcher": False, "layout_optimization": False}
"""Of the compiler, on a CPU. Without them it adds a bias or another product inside each matrix product, after a copy,
and not in the loop that goes over the result anyway; and it turns the constants of convolutions to channels last again
in every product: an MLP took 7.8 instead of 7.7 ms, two convolutions 25.8 instead of 21.4."""


class Program:
    """The product of one batch as a pure function of what the modules hold, the batch, and the vector.

    It knows the parameters, buffers and batch as they come, but all else in the network as it was traced.

    Args:
        operator: whose product.
        whole: (held, batch, vector) → (product,).

    Attributes:
        first: the part of it that the vector does not enter, (held, batch) → constants.
        second: the rest, (constants, vector) → (product,).
        bytes: of the constants, beyond what the modules and the batch hold.
        random: whether it draws random numbers, which only the first part does.
    """

    def __init__(self, operator: BatchMatrices, whole: fx.GraphModule):
        self.first, self.second = _split(whole)
        tags = itertools.chain.from_iterable(getattr(node.target, "tags", ()) for node in whole.graph.nodes)
        self.random = torch.Tag.nondeterministic_seeded in tags
        self.bytes = 0
        self._strides = [p.stride() for p in operator.problem.parameters]
        self._whole, self._second = _Compiled(whole), _Compiled(self.second)

    @classmethod
    def of(cls, operator: BatchMatrices, index: int, v: Tensor) -> Program | None:
        """Trace the product of a batch, inside `evaluating`; None, with a warning, where that can't be done."""
        operator.batch_graph(index)  # which refuses, in words, what can't be measured
        held, tensors = operator.problem.inputs(index)

        def product(*inputs: Tensor) -> list[Tensor]:
            with operator.problem.substituting(index, inputs[: len(held)], inputs[len(held) : -1]):
                return [product_by(operator, operator.batch_graph(index), inputs[-1], keep=False)]

        try:
            traced = make_fx(product)(*held, *tensors, v)
            # Twice: autograd runs in the first, in-place operations become pure in the second.
            with torch.no_grad():
                pure = make_fx(torch.func.functionalize(traced))(*held, *tensors, v)
        except Exception as error:
            warnings.warn(
                f"compile=True has no effect on a product: it can't be traced ({first_line(error)})", stacklevel=2
            )
            return None
        pure.graph.eliminate_dead_code(_matters)
        pure.recompile()
        program = cls(operator, pure)
        program.bytes = _bytes_beyond(program.constants(operator, index), [*held, *tensors])
        return program

    @property
    def why_it_differs(self) -> str:
        """What to say where its product is not the streamed one."""
        if self.random:
            return "it draws other random numbers than the eager one (measure with mode='eval' to have none)"
        return "it differs from the eager one: what the network does depends on values, or has changed"

    def fits(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the problem's parameters lie in memory as when it was traced."""
        return [p.stride() for p in parameters] == self._strides

    def constants(self, operator: BatchMatrices, index: int) -> Sequence[Tensor]:
        """What a batch's products have in common."""
        held, tensors = operator.problem.inputs(index)
        operator.problem.seed_batch(index)
        with torch.no_grad():
            constants: Sequence[Tensor] = self.first(*held, *tensors)
            return constants

    def way(self, operator: BatchMatrices, index: int, v: Tensor, room: float) -> Way | None:
        """The way to a batch's products, from constants where these have room; None where there is none."""
        if self.bytes <= room:
            constants = self.constants(operator, index)
            return FromConstants(constants, self._second.laid_out_as(*constants, v.contiguous()), self.bytes)
        # Compiled, its random numbers would not be those of the eager product.
        return None if self.random else FromInputs(self._whole)


class FromConstants(NamedTuple):
    """A batch's products from what they have in common, kept, by the second part of a program."""

    tensors: Sequence[Tensor]
    second: Callable[..., Sequence[Tensor]]
    bytes: float
    alone: bool = True

    def product(self, operator: BatchMatrices, index: int, v: Tensor) -> Tensor:
        with torch.no_grad():
            return self.second(*self.tensors, v.contiguous())[0]


class FromInputs(NamedTuple):
    """A batch's products by a whole program, with nothing kept."""

    whole: _Compiled
    bytes: float = 0.0
    alone: bool = False

    def product(self, operator: BatchMatrices, index: int, v: Tensor) -> Tensor:
        held, tensors = operator.problem.inputs(index)
        inputs = *held, *tensors, v.contiguous()
        with torch.no_grad():
            return self.whole.laid_out_as(*inputs)(*inputs)[0]


class _Compiled:
    """A traced program, compiled for each layout of its inputs in memory. All else that a compiled program relies on
    does not change inside `with problem:`."""

    def __init__(self, program: fx.GraphModule):
        self._program = program
        self._compiled: dict[Any, Callable[..., Sequence[Tensor]]] = {}

    def laid_out_as(self, *inputs: Tensor) -> Callable[..., Sequence[Tensor]]:
        """The program for inputs of these shapes, strides and dtypes."""
        layout = tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        if layout not in self._compiled:
            options = OPTIONS if inputs[-1].device.type == "cpu" else None
            limit = sys.getrecursionlimit()
            try:
                with torch.no_grad():
                    self._compiled[layout] = private_torch.compiled(copy.deepcopy(self._program), inputs, options)
            finally:
                sys.setrecursionlimit(limit)  # which the compiler raises
        return self._compiled[layout]


def _split(whole: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Divide a program at where its last input, the vector, enters; the product is made in the second part, also where
    it does not depend on the vector."""
    nodes = list(whole.graph.nodes)
    after = {[node for node in nodes if node.op == "placeholder"][-1], nodes[-1], *nodes[-1].all_input_nodes}
    for node in nodes:
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    between = [node for node in nodes if node not in after and any(user in after for user in node.users)]
    first, second = fx.Graph(), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in after:
            copied[node] = first.node_copy(node, copied.__getitem__)
    first.output(tuple(copied[node] for node in between))
    moved = {node: second.placeholder(node.name) for node in between}
    for node in nodes:
        if node in after:
            moved[node] = second.node_copy(node, moved.__getitem__)
    return fx.GraphModule(whole, first), fx.GraphModule(whole, second)


def _matters(node: fx.Node) -> bool:
    """Whether a node does something even where nobody uses its result."""
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or bool(schema and schema.is_mutable)


def _bytes_beyond(tensors: Sequence[Tensor], known: Sequence[Tensor]) -> int:
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    for x in known:
        storages.pop(x.untyped_storage().data_ptr(), None)
    return sum(storages.values())
