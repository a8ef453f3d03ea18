"""When a monitor measures next, and which parts of a measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

from wellcond.monitor.budget import Budget
from wellcond.monitor.measuring import CONDITION, EDGE, LAYERS, PLAIN, Looking

FINDINGS = "findings"
"""All of them, and not only those that cost next to nothing."""

RESERVED = {FINDINGS: 0.2, PLAIN: 0.1, CONDITION: 0.3, LAYERS: 0.1}
"""What other parts than the edge ratio, which is of every measurement, have of the budget."""

PROBE = 32.0
"""Steps of the run that a look with the first two products is expected to take, before anything was measured: a product
is about two gradients, the optimizer's preconditioner is read, and all of it comes cold: 26 were seen."""

WARM_UP = 0.05
"""Seconds more that the first of them take: what torch loads when it is first asked for a second derivative."""

KAPPA_PRODUCTS, FINDINGS_PRODUCTS = 80, 30
"""Products of the Hessian that κ and the findings are expected to take before they were measured."""

INTERVALS = 50
"""Steps whose time without the monitor is kept: their median says what a step takes."""


class Pace:
    """Decides when to measure and what, so that the budget is kept.

    Args:
        budget: what may be spent.
        looking: what measures, and knows which parts there are.
        every: steps between measurements, at least.

    Attributes:
        last: the step that was measured last.
        ended_at: when the last step's hook ended.
    """

    def __init__(self, budget: Budget, looking: Looking, every: int):
        self.budget, self.looking, self.every = budget, looking, every
        self.last = -math.inf
        self._not_before = 0.0
        self.ended_at: float | None = None
        self._intervals: list[float] = []  # from the end of a step's hook to the next one
        self._probed: float | None = None  # seconds of a look with the fewest products

    def begin_step(self, now: float) -> None:
        """A step's hook begins."""
        if self.budget.started is None:
            self.budget.started = now
        elif self.ended_at is not None and len(self._intervals) < INTERVALS:
            self._intervals.append(now - self.ended_at)

    def is_due(self, step: int, jumped: bool, now: float) -> bool:
        """Whether to measure after this step, if the budget has room."""
        return now >= self._not_before and (jumped or step - self.last >= self.every)

    def everything(self) -> list[str]:
        """The parts of a whole measurement."""
        return [*self.looking.possible, FINDINGS]

    def choose(self, now: float, probe: Callable[[], float]) -> tuple[list[str], float] | None:
        """What to measure now, and the seconds that the first part may take; None for nothing yet.

        Args:
            now: the time.
            probe: finds out what a look with the fewest products takes; called once, when that can be afforded.
        """
        budget = self.budget
        if budget.share is None:
            return self.everything(), math.inf
        if self._probed is None:
            if self._intervals:
                expected = WARM_UP + PROBE * len(self.looking.batches) * median(self._intervals)
                if expected > budget.room(now):
                    self._wait_for(expected, now)
                else:
                    self._probed = probe()
            return None
        costs = self._costs(1.5 * self._probed)
        parts = budget.affordable(costs, now)
        if not parts:
            self._wait_for(costs[EDGE], now)
            return None
        return parts, budget.room(now) - sum(costs[part] for part in parts[1:])

    def _wait_for(self, cost: float, now: float) -> None:
        """Look again once there is room for a cost; not at every step before, which would be a cost itself."""
        self._not_before = now + max(self.budget.wait(cost, now), 0.002 * self.budget.elapsed(now))

    def _costs(self, first: float) -> dict[str, float]:
        """Expected seconds of each part."""
        product = self.looking.product_seconds or first
        guesses = {EDGE: first, FINDINGS: FINDINGS_PRODUCTS * product, PLAIN: first}
        guesses |= dict.fromkeys((CONDITION, LAYERS), KAPPA_PRODUCTS * product)
        edge, *others = self.looking.possible
        costs = {part: self.budget.expected(part) or guesses[part] for part in (edge, FINDINGS, *others)}
        # What these see is for findings.
        return {part: cost + costs[FINDINGS] * (part in (CONDITION, LAYERS)) for part, cost in costs.items()}
