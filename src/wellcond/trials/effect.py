"""What a remedy did where it was tried, or why that is not known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from wellcond.linalg import Estimate

SAVES = 0.1
"""The share of the loss that a change of the optimizer must save: a judgment, for less nobody should change one."""


@dataclass(frozen=True)
class Effect:
    """What a remedy did where it was tried or computed: one figure, without it and with it, the lower the better.

    Attributes:
        figure: what is compared, as "loss after 50 steps".
        without: the run as it is.
        with_remedy: the same with the remedy in it.
    """

    figure: str
    without: Estimate
    with_remedy: Estimate

    @property
    def better(self) -> bool | None:
        """Whether the remedy helped; None where the intervals overlap."""
        if self.with_remedy.high < self.without.low:
            return True
        return False if self.without.high < self.with_remedy.low else None

    def saves(self, share: float = SAVES, now: float = math.inf) -> bool:
        """Whether the remedy is better, by more than this share of the figure as it is, and not for the worse of `now`,
        the figure before the steps: what only makes a run diverge more slowly fixes something else."""
        fall = self.without.value - self.with_remedy.value
        enough = math.isinf(fall) or fall > share * abs(self.without.value)
        return bool(self.better) and enough and self.with_remedy.value < now

    def __str__(self) -> str:
        """As a sentence.

        >>> str(Effect("loss after 50 steps", Estimate(0.5, 0.5, 0.5, "trial"), Estimate(0.1, 0.1, 0.1, "trial")))
        'loss after 50 steps: 0.5 as it is, 0.1 with the remedy'
        """
        return f"{self.figure}: {self.without} as it is, {self.with_remedy} with the remedy"


@dataclass(frozen=True)
class NoEffect:
    """A remedy was not tried, or could not be; false where an `Effect` is true.

    Attributes:
        why: to be told of the remedy, as a clause; empty where nothing was to be tried, or it was told before.
        failed: whether it was tried and failed.
    """

    why: str = ""
    failed: bool = False

    def __bool__(self) -> Literal[False]:
        return False


def why_none(tried: Iterable[Effect | NoEffect]) -> NoEffect:
    """Why several trials gave no effect: one that failed says it, else the last that has a reason."""
    reasons = [found for found in tried if isinstance(found, NoEffect)]
    return max(reversed(reasons), key=lambda found: (found.failed, bool(found.why)), default=NoEffect())
