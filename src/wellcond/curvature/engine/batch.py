"""What the engine asks of an operator, and the product of one batch as the operator makes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wellcond.linalg import norm
from wellcond.parameters import unflatten
from wellcond.problem import Problem


class BatchGraph(Protocol):
    """What products with the matrix of one batch are made from."""

    @property
    def outputs(self) -> Sequence[Tensor]:
        """All that is differentiated in a product."""


class BatchMatrices(Protocol):
    """A matrix of a problem, the weighted mean of its batches' matrices.

    Attributes:
        problem: whose batches.
        on_batch: called with the part of a product that is done, after each batch but the last.
    """

    problem: Problem
    on_batch: Callable[[float], None] | None

    @property
    def key(self) -> tuple[Any, ...]:
        """Under which its graphs are kept: the same for two operators with the same matrix."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """That it is over."""

    def batch_graph(self, index: int) -> Any:
        """What products with the matrix of a batch are made from, a `BatchGraph`; inside `problem.evaluating()`."""

    def batch_product(self, graph: Any, pieces: Sequence[Tensor], keep: bool) -> Sequence[Tensor]:
        """The product of a batch's matrix with a vector, or with several where the pieces have a dimension in front.

        Args:
            graph: the batch's.
            pieces: of the vector, by parameter.
            keep: the graph for further products.
        """


def streamed(operator: BatchMatrices, index: int, v: Tensor) -> Tensor:
    """The product of one batch's matrix from a graph of its own, which is then gone."""
    return product_by(operator, operator.batch_graph(index), v, keep=False)


def product_by(operator: BatchMatrices, graph: Any, v: Tensor, keep: bool) -> Tensor:
    """By a batch's graph, with a vector, (n,), or with each row of (k, n)."""
    pieces = operator.batch_product(graph, unflatten(v, operator.parameters), keep)
    return torch.cat([piece.detach().reshape(*v.shape[:-1], -1) for piece in pieces], dim=-1)


def agree(product: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    """Whether two ways to a product came to the same.

    Args:
        product: of one of them.
        expected: of the other, of the same shape.
        tolerance: relative to the length; default: what rounding in another order may do.
    """
    tolerance = math.sqrt(torch.finfo(product.dtype).eps) if tolerance is None else tolerance
    return not math.isfinite(norm(expected)) or norm(product - expected) <= tolerance * norm(expected)
