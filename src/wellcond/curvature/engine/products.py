"""Products of a problem's matrices with vectors.

`multiply` sums over batches. Outside `with problem:` a batch's product is streamed: the operator makes the batch's
graph and differentiates it (batch.py). Inside, the first product of each batch is streamed too, and a faster way is
looked for (keeping.py): a program, traced and compiled once for each shape of batch where `compile=True` (compiled.py),
else the graph itself (kept_graph.py), where `memory_limit` has room for it (sizes.py). A way must first give the
streamed product: a program in every block, since it knows the network as it was traced; a graph once for each operator,
since every block makes a new one. A way that differs is given up with a warning. What passes is kept until the block
ends and makes all later products of the batch; where nothing of the user's runs in them, without isolating the network.

What lasts longer than a block, such as compiled programs and the sizes of graphs, is kept for as long as the problem
lives.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from wellcond.curvature.engine.batch import BatchMatrices, agree, streamed
from wellcond.curvature.engine.keeping import engine_of
from wellcond.curvature.engine.sizes import columns_at_once


def multiply(operator: BatchMatrices, v: Tensor) -> Tensor:
    """The product of the mean of an operator's matrices with a vector, (n,)."""
    problem, engine = operator.problem, engine_of(operator.problem)
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
    one_by_one = engine_of(operator.problem).one_by_one
    if operator.problem.compile or operator.key in one_by_one:
        return None
    products = _together(operator, V, done)
    if products is None or not agree(products[:, 0], first, 1e3 * torch.finfo(first.dtype).eps):
        one_by_one.add(operator.key)
        return None
    return products


def kept_matrix(operator: BatchMatrices, form: Callable[[], Tensor]) -> Tensor:
    """The operator's matrix, which `form` makes, kept for the rest of a `with problem:` block; a copy of it."""
    kept = engine_of(operator.problem).kept(operator.problem)
    if kept is None:
        return form()
    if operator.key not in kept.matrices:
        kept.matrices[operator.key] = form()
    return kept.matrices[operator.key].clone()


def _together(operator: BatchMatrices, V: Tensor, done: Callable[[int], None]) -> Tensor | None:
    problem, engine, parts = operator.problem, engine_of(operator.problem), []
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
