"""Freed memory stays with the process while many products are made."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import sys
from collections.abc import Callable, Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 32 * 2**20
"""From here on glibc always takes a block from the system and gives it back."""

_holders = 0


@contextlib.contextmanager
def heap_kept() -> Iterator[None]:
    """Inside, glibc does not return the top of its heap to the system.

    By default it does whenever twice the size of the largest block freed so far is free there, so that a network whose
    activations take some megabytes has its pages mapped anew in every product: with two convolutions on 32×32 images at
    batch 128, on one thread, a kept product took 10,176 page faults and 62 to 72 ms, without them 48 to 50 ms. On
    leaving, what is free is returned, and glibc's thresholds are the largest that it would have come to by itself.
    """
    global _holders
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    _holders += 1
    if _holders == 1:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        _holders -= 1
        if _holders == 0:
            mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_BLOCK)
            ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's, where that is the allocator."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    mallopt: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt
