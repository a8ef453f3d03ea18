"""Out of memory: how to tell, and what to ask for instead."""

from __future__ import annotations

import gc
import re
from typing import Any

import torch

from wellcond.problem.batches import count_examples, with_rows

_WORDS = re.compile(r"out of memory|allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, says that there is no memory left, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and _WORDS.search(str(error)):
        return True
    return error.__cause__ is not None and out_of_memory(error.__cause__)


def free(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).empty_cache()


def halved(batches: list[Any]) -> list[Any] | None:
    """Every second example of each batch; of batches that can't be made smaller, every second one; None where there is
    one such batch."""
    smaller = [with_rows(batch, slice(None, None, 2)) for batch in batches]
    if any(count_examples(new) < count_examples(old) for new, old in zip(smaller, batches, strict=True)):
        return smaller
    return batches[::2] if len(batches) > 1 else None
