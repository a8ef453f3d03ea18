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
