"""The private names of torch that wellcond uses: all of them are in this file, each with a public fallback.

A name is looked up when it is used, so that a test (or a later torch) can take it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

uncompiled = getattr(torch, "_disable_dynamo", torch.compiler.disable)
"""Decorator: `torch.compile` leaves the function alone. The public name would import the compiler at once."""


def foreach(operation: str, tensors: Sequence[Tensor], *operands: Any, **options: Any) -> None:
    """Apply an in-place operation to many tensors, in one call per device where torch has it.

    Args:
        operation: the name of a tensor's method, as "add_" or "copy_".
        tensors: to be changed.
        operands: each one list, with an entry per tensor, or one value for all.
        options: keywords of the operation.
    """
    together = getattr(torch, f"_foreach_{operation}", None)
    if together is not None:
        together(list(tensors), *operands, **options)
        return
    for i, x in enumerate(tensors):
        getattr(x, operation)(*(y[i] if isinstance(y, list | tuple) else y for y in operands), **options)


def out_of_vmap(x: Tensor) -> Tensor | None:
    """A tensor out of torch.func's wrappers, the dimensions that it maps over in front; None where torch has no way."""
    try:
        from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, maybe_get_bdim
    except ImportError:
        return x if _has_storage(x) else None
    while is_functorch_wrapped_tensor(x):
        mapped, x = maybe_get_bdim(x), get_unwrapped(x)
        x = x.movedim(mapped, 0) if mapped >= 0 else x
    return x


def _has_storage(x: Tensor) -> bool:
    try:
        x.untyped_storage()
    except NotImplementedError:  # as wrappers answer
        return False
    return True
