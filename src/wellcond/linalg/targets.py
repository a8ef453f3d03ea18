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
class Wanted:
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

    def choose(self, theta: Tensor) -> Tensor:
        """Indices of those wanted among theta, which rises; fewer than `count` if there are fewer."""
        m = len(theta)
        rising, falling = torch.arange(m), torch.arange(m).flip(0)
        if self.which == "largest":
            return falling[: self.k]
        if self.which == "smallest":
            return rising[: self.k]
        if self.which == "magnitude":
            return theta.abs().argsort(descending=True)[: self.k]
        top = falling[: self.k]
        return torch.cat([top, rising[: min(self.k, m - len(top))]])

    def nearest(self, theta: Tensor, count: int) -> Tensor:
        """Indices of the `count` of theta, which rises, that are nearest to being wanted."""
        if self.which != "both":
            return Wanted(self.which, count, self.n).choose(theta)
        below = count // 2
        return torch.cat([torch.arange(below), torch.arange(len(theta) - count + below, len(theta))])

    def claims(self, values: Tensor, margins: Tensor) -> list[list[Claim]]:
        """For each value, in the documented order, what excludes that another one should be in its place, unless it is
        nearer than the margin."""
        claims, v, margin = [], values.tolist(), margins.tolist()
        for i, value in enumerate(v):
            if self.which == "magnitude":
                above, x = sum(earlier > 0 for earlier in v[:i]), abs(value) + margin[i]
                claims.append([Claim(1, above, x), Claim(-1, i - above, -x)])
            elif self.which == "largest" or (self.which == "both" and i < self.k):
                claims.append([Claim(1, i, value + margin[i])])
            else:
                claims.append([Claim(-1, i if self.which == "smallest" else i - self.k, value - margin[i])])
        return claims

    def hardest_first(self, claims: list[list[Claim]]) -> list[list[Claim]]:
        """The same claims, those about the innermost values first: if they hold, the others do or nearly."""
        if self.which != "both":
            return claims[::-1]
        return claims[-1:] + claims[self.k - 1 :: -1] + claims[-2 : self.k - 1 : -1]
