"""Which eigenvalues are asked for, and what must be true of the others for these to be the ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Claim(NamedTuple):
    """A has no more than `position` eigenvalues beyond x at this end of the spectrum (1: above, -1: below)."""

    end: int
    position: int
    x: float


@dataclass(frozen=True)
class Targets:
    """`k` of n eigenvalues: "largest" (falling), "smallest" (rising), "magnitude" (falling in absolute value), or
    "both" (the k largest, falling, and then the k smallest, rising)."""

    which: str
    k: int
    n: int

    def __post_init__(self) -> None:
        if self.which not in ("largest", "smallest", "both", "magnitude"):
            raise ValueError(f'got which={self.which!r}; it is "largest", "smallest", "both" or "magnitude"')
        if not 1 <= self.k <= self.n:
            raise ValueError(f"got k={self.k}; an operator of size {self.n} has 1 to {self.n} eigenvalues to ask for")

    @property
    def count(self) -> int:
        """How many are listed."""
        return min(2 * self.k, self.n) if self.which == "both" else self.k

    @property
    def first(self) -> int:
        """How many are listed before those that are counted from the bottom."""
        return 0 if self.which == "smallest" else self.k

    def choose(self, theta: Tensor) -> Tensor:
        """Indices of the targets among theta, which rises; fewer than `count` if there are fewer."""
        if self.which == "magnitude":
            return theta.abs().argsort(descending=True)[: self.k]
        rising = torch.arange(len(theta))
        top = rising.flip(0)[: self.first]
        return torch.cat([top, rising[: min(self.count, len(theta)) - len(top)]])

    def nearest(self, theta: Tensor, count: int) -> Tensor:
        """Indices of the `count` of theta, which rises, that are nearest to being targets."""
        if self.which != "both":
            return Targets(self.which, count, self.n).choose(theta)
        below = count // 2
        return torch.cat([torch.arange(below), torch.arange(len(theta) - count + below, len(theta))])

    def claims(self, values: Tensor, margins: Tensor) -> list[list[Claim]]:
        """For each value, in the documented order, what excludes that another one should be in its place, unless it is
        nearer than the margin."""
        claims, v = [], values.tolist()
        for i, (value, margin) in enumerate(zip(v, margins.tolist(), strict=True)):
            if self.which == "magnitude":
                above, x = sum(earlier > 0 for earlier in v[:i]), abs(value) + margin
                claims.append([Claim(1, above, x), Claim(-1, i - above, -x)])
            elif i < self.first:
                claims.append([Claim(1, i, value + margin)])
            else:
                claims.append([Claim(-1, i - self.first, value - margin)])
        return claims

    def hardest_first(self, claims: list[list[Claim]]) -> list[list[Claim]]:
        """The same claims, those about the innermost values first: if they hold, the others do or nearly."""
        top, bottom = claims[: self.first][::-1], claims[self.first :][::-1]
        return bottom[:1] + top + bottom[1:]
