"""A kept graph as a way to products, and whether it may do without the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from wellcond.curvature.engine.batch import BatchGraph, BatchMatrices, product_by
from wellcond.private_torch import saving_is_hooked
from wellcond.problem import graph_nodes

_HOOKS = (
    Tensor.register_hook,
    Tensor.register_post_accumulate_grad_hook,
    Tensor.grad_fn.__get__,  # type: ignore[union-attr]  # modules' hooks, and all that are set on a node
)


class Way(Protocol):
    """A way to the products of one batch's matrix that is faster than to stream them.

    Attributes:
        alone: whether nothing of the user's runs in a product, so that the network need not be isolated.
        bytes: that it holds.
    """

    @property
    def alone(self) -> bool: ...

    @property
    def bytes(self) -> float: ...

    def product(self, operator: BatchMatrices, index: int, v: Tensor) -> Tensor:
        """The product with a vector, (n,); inside `problem.evaluating()`, or `differentiating()` where it is alone."""


class KeptGraph(NamedTuple):
    """The graph of one batch."""

    graph: BatchGraph
    bytes: float
    alone: bool

    def product(self, operator: BatchMatrices, index: int, v: Tensor) -> Tensor:
        if not self.alone:
            operator.problem.begin(index)  # layers may run again in a backward pass
        return product_by(operator, self.graph, v, keep=True)


class Watch(TorchFunctionMode):
    """Sees hooks that are set on tensors and nodes, or on what is saved, while a graph is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self._hooked = False

    def alone(self, outputs: Sequence[Tensor]) -> bool:
        """Whether nothing but derivatives of torch's own will run when what was made inside is differentiated: no
        function of the user's, and no hook, as by checkpointing."""
        return not self._hooked and not any(isinstance(node, BackwardCFunction) for node in graph_nodes(*outputs))

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _HOOKS or saving_is_hooked():
            self._hooked = True
        return function(*args, **(kwargs or {}))
