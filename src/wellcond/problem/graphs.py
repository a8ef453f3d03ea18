"""What an autograd graph is made of, and how many bytes it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from wellcond import private_torch


def graph_nodes(*tensors: Tensor) -> Iterator[Any]:
    """The nodes of the autograd graphs that tensors hang on, each once."""
    with private_torch.unseen_by_modes():
        seen, stack = set(), [tensor.grad_fn for tensor in tensors]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(parent for parent, _ in node.next_functions)


def graph_bytes(build: Callable[[], Any]) -> float:
    """Bytes of the tensors that autograd saves for what `build` makes; infinite for networks that use torch.func, which
    does not say. The graph made here is thrown away: one with these hooks in it would call them in every product."""
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        try:
            storage = x.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        except RuntimeError:  # sparse, nested, or under forward AD: without a storage of its own
            seen[-id(x)] = (x._nnz() if "sparse" in str(x.layout) else x.numel()) * x.element_size()
        return x

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            build()
    except RuntimeError as error:
        if "saved tensor hooks" in str(error):
            return math.inf
        raise
    return sum(seen.values())


def check_depends(loss: Tensor) -> None:
    """Refuse a loss (or an output) that can't be traced back to the parameters."""
    if any(node.name() == "CheckpointFunctionBackward" for node in graph_nodes(loss)):
        raise ValueError(
            "a layer is checkpointed with use_reentrant=True, which can't be differentiated this way; pass "
            "use_reentrant=False to torch.utils.checkpoint.checkpoint"
        )
    if not loss.requires_grad:
        raise ValueError(
            "the loss does not depend on the parameters: something in the model or the loss detaches them "
            "(.detach(), .item(), torch.no_grad, or a checkpoint with use_reentrant=True)"
        )
