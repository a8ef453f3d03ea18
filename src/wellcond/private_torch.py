"""The private names of torch that wellcond uses: all of them are in this file, each with a public fallback.

A name is looked up when it is used, so that a test (or a later torch) can take it away.
"""

from __future__ import annotations

import traceback
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


def in_backward() -> bool:
    """Whether this thread is in a backward pass, as when a checkpointed layer runs again."""
    task = getattr(torch._C, "_current_graph_task_id", None)
    if task is not None:
        return bool(task() != -1)
    names = {"_engine_run_backward", "backward", "unpack_hook"}  # the last two on an autograd thread of a device
    frames = (frame for frame, _ in traceback.walk_stack(None))
    return any(f.f_code.co_name in names and f.f_globals.get("__name__", "").startswith("torch.") for f in frames)
