"""The private names of torch that wellcond uses: all of them are in this file, each with a public fallback.

A name is looked up when it is used, so that a test (or a later torch) can take it away.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

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


def as_written() -> contextlib.AbstractContextManager[object]:
    """Inside, what `torch.compile` made runs as it was written.

    Where the compiler is not imported there is nothing of that kind, and the public name would import it.
    """
    if "torch._dynamo" not in sys.modules and _is_module("torch._dynamo"):
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def unseen_by_modes() -> contextlib.AbstractContextManager[object]:
    """Inside, a `TorchFunctionMode` is not told of what is called; without the private name it is."""
    off = getattr(torch._C, "DisableTorchFunction", contextlib.nullcontext)
    context: contextlib.AbstractContextManager[object] = off()
    return context


def saving_is_hooked() -> bool:
    """Whether hooks see what autograd saves now, as inside a checkpointed part; also where torch does not say."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None


def compiled(program: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any] | None) -> Callable[..., Any]:
    """A traced program, compiled for inputs of these shapes, strides and dtypes, on which it may rely.

    torch.compile, the public name, asks at every call whether it may, which takes longer than some programs.
    """
    try:
        from torch._guards import TracingContext, tracing
        from torch._inductor import compile
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv
    except ImportError:
        return torch.compile(program, fullgraph=True, dynamic=False, options=options)
    # Without a context of its own the compiler would not look into its cache on disk.
    with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
        return compile(program, list(inputs), options)


@functools.cache
def _is_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def in_backward() -> bool:
    """Whether this thread is in a backward pass, as when a checkpointed layer runs again."""
    task = getattr(torch._C, "_current_graph_task_id", None)
    if task is not None:
        return bool(task() != -1)
    names = {"_engine_run_backward", "backward", "unpack_hook"}  # the last two on an autograd thread of a device
    frames = (frame for frame, _ in traceback.walk_stack(None))
    return any(f.f_code.co_name in names and f.f_globals.get("__name__", "").startswith("torch.") for f in frames)


def out_of_vmap(x: Tensor) -> Tensor | None:
    """A tensor out of torch.func's wrappers, the dimensions that it maps over in front; None where torch has no way."""
    try:
        from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, maybe_get_bdim
    except ImportError:
        with contextlib.suppress(NotImplementedError):  # as wrappers answer
            x.untyped_storage()
            return x
        return None
    while is_functorch_wrapped_tensor(x):
        mapped, x = maybe_get_bdim(x), get_unwrapped(x)
        x = x.movedim(mapped, 0) if mapped >= 0 else x
    return x
