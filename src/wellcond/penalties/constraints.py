"""Constraints: penalties that are 0 inside a set and infinite outside; the proximal step is the projection."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from wellcond.penalties.penalty import Penalty, checked, wide


class Box(Penalty):
    """Every entry between two bounds.

    Args:
        low: the lower bound; −inf for none.
        high: the upper bound, no less than `low`; inf for none.

    Raises:
        TypeError, ValueError: for bounds that are no numbers, or in the wrong order.
    """

    compiles = True
    strength = None
    arguments: ClassVar[tuple[str, ...]] = ("low", "high")

    def __init__(self, low: float, high: float):
        self.low = checked("low", low, "a number, or -inf for no bound", lambda b: b < math.inf)
        self.high = checked(
            "high",
            high,
            f"a number no less than low={low}, or inf for no bound",
            lambda b: b >= self.low and b > -math.inf,
        )

    # Nothing here is computed in more than x's dtype: a bound that was rounded to bfloat16 is not outside.

    def value(self, x: Tensor) -> Tensor:
        inside = x == self.prox(x, 1.0)
        return torch.where(inside.all(), wide(x).new_zeros(()), torch.inf)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return x.clamp(self.low, self.high)

    def residual(self, x: Tensor, gradient: Tensor) -> Tensor:
        gradient = torch.where(x == x.clamp(max=self.low), gradient.clamp(max=0), gradient)
        gradient = torch.where(x == x.clamp(min=self.high), gradient.clamp(min=0), gradient)
        return torch.where(x == self.prox(x, 1.0), gradient, torch.inf).to(x.dtype)


class NonNegative(Box):
    """No entry below 0."""

    compiles = True
    arguments = ()

    def __init__(self) -> None:
        super().__init__(0.0, math.inf)
