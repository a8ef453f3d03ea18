"""Timing in paired rounds, and the memory that a computation takes."""

from __future__ import annotations

import contextlib
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

Action = Callable[[], object]
Clock = Callable[[], float]


def rounds(
    actions: dict[str, Action], count: int, clock: Clock = time.perf_counter, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds that each action took in each round, by the clock.

    Every round runs all actions once, in an order of its own, so that what else the machine does falls on all alike.
    Each runs `warm` times before, untimed.
    """
    order, shuffle = list(actions), random.Random(0).shuffle
    for action in actions.values():
        for _ in range(warm):
            action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(count):
        shuffle(order)
        for name in order:
            taken[name].append(seconds(actions[name], clock))
    return taken


def ratios(taken: dict[str, list[float]], baseline: str) -> dict[str, float]:
    """The median over rounds of each action's time over the baseline's in the same round."""
    base = taken[baseline]
    return {name: statistics.median(t / b for t, b in zip(ts, base, strict=True)) for name, ts in taken.items()}


def wins(taken: dict[str, list[float]], name: str, other: str) -> str:
    """In how many rounds `name` was faster than `other`; empty where that may be chance, at two standard errors."""
    count = len(taken[name])
    faster = sum(a < b for a, b in zip(taken[name], taken[other], strict=True))
    return f"faster in {faster} of {count} rounds" if faster >= count / 2 + math.sqrt(count) else ""


def seconds(action: Action, clock: Clock = time.perf_counter) -> float:
    """Of one run, to the end of what it left to a GPU."""
    _wait()
    started = clock()
    action()
    _wait()
    return clock() - started


def memory(action: Action) -> tuple[int, int]:
    """Bytes of tensors that an action takes at its peak, and that it leaves behind."""
    if torch.cuda.is_available():
        _wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = action()
        _wait()
        left = torch.cuda.memory_allocated() - before
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = action()
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        peak = left = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            left += event.nbytes()
            peak = max(peak, left)
    del result
    return peak, left


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Some builds of the profiler write to standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
