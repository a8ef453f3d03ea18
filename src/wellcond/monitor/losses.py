"""The losses that a training loop shows, read without waiting for a device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

WINDOW = 64
"""Losses that a jump is held against."""

LEAST = 20
"""Of them, before any is called high."""

SIGMAS, LASTING = 6.0, 3
"""A jump is above all of the window, and above its median by `SIGMAS` standard deviations, estimated from the
median absolute deviation, for `LASTING` steps: one hard batch is none."""


RENEWED = 16
"""Losses after which the limit is computed again, which costs more than all else in a step."""


class Losses:
    """Takes one loss or several a step, whose mean is the step's.

    A tensor on an accelerator is copied to the host without waiting, and read when it has arrived, some steps later.

    Attributes:
        latest: of the last step whose losses have been read; None before.
        jumps: steps at which the loss jumped, until they are taken.
    """

    def __init__(self) -> None:
        self.latest: float | None = None
        self.jumps: list[int] = []
        self._now: list[float | _OnItsWay] = []
        self._waiting: deque[tuple[int, list[float | _OnItsWay]]] = deque()
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._limit, self._age = math.inf, 0  # its age in losses
        self._high: list[float] = []  # the latest losses, as long as they are as high as a jump

    def observe(self, loss: Any) -> None:
        """Take up a loss.

        Raises:
            TypeError, ValueError: for what is no scalar.
        """
        if isinstance(loss, Tensor):
            if loss.ndim and loss.numel() != 1:
                raise ValueError(
                    f"the loss has shape {tuple(loss.shape)}; observe the scalar that backward() is called on"
                )
            self._now.append(float(loss.item()) if loss.is_cpu else _OnItsWay(loss.detach()))
        else:
            try:
                self._now.append(float(loss))
            except (TypeError, ValueError):
                raise TypeError(f"the loss is a {type(loss).__name__}; observe a scalar tensor or a number") from None

    def end_step(self, step: int) -> bool:
        """The step is over; whether a loss that arrived meanwhile is a jump."""
        now, self._now = self._now, []
        if len(now) == 1 and isinstance(now[0], float) and not self._waiting:  # as nearly every step
            return self._take(step, now[0])
        if now:
            self._waiting.append((step, now))
        jumped = False
        while self._waiting and all(isinstance(x, float) or x.arrived for x in self._waiting[0][1]):
            jumped |= self._read()
        return jumped

    def flush(self) -> None:
        """Read all, waiting for it."""
        while self._waiting:
            self._read()

    def take_jumps(self) -> list[int]:
        """Those since the last call."""
        jumps, self.jumps = self.jumps, []
        return jumps

    def _read(self) -> bool:
        step, values = self._waiting.popleft()
        return self._take(step, sum(x if isinstance(x, float) else x.value for x in values) / len(values))

    def _take(self, step: int, loss: float) -> bool:
        """Hold a loss against the window; whether it is a jump."""
        self.latest = loss
        window = self._window
        if self._age >= RENEWED or len(window) == LEAST:
            self._limit, self._age = _limit(window), 0
        if loss <= self._limit or (len(window) < LEAST and math.isfinite(loss)):
            window.extend([*self._high, loss])
            self._age += 1
            self._high.clear()
            return False
        if math.isfinite(loss) and len(self._high) + 1 < LASTING:
            self._high.append(loss)
            return False
        known = len(window) >= LEAST
        if known:
            self.jumps.append(step)
        window.clear()  # the next one is held against what comes after
        self._high.clear()
        return known


def _limit(window: Iterable[float]) -> float:
    """What a loss must exceed to be high."""
    rising = sorted(window)  # statistics.median takes three times as long
    middle = rising[len(rising) // 2]
    deviation = 1.4826 * sorted([abs(x - middle) for x in rising])[len(rising) // 2]
    return max(rising[-1], middle + SIGMAS * max(deviation, 1e-3 * abs(middle)))


class _OnItsWay:
    """A scalar on an accelerator that is being copied to the host."""

    def __init__(self, loss: Tensor):
        self._host = loss.to("cpu", non_blocking=True)
        self._event = torch.Event(loss.device)
        self._event.record()

    @property
    def arrived(self) -> bool:
        """Whether it can be read without waiting."""
        return self._event.query()

    @property
    def value(self) -> float:
        """The loss, waiting for it."""
        self._event.synchronize()
        return float(self._host)
