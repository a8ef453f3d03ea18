"""How much of the wall time a monitor may take, and when it may take it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MARGIN = 1.3
"""A part is expected to take this many times what it took the last two times, the larger of them."""

UNSEEN = 2.3
"""What counting a step takes by the clock of a twin without a monitor, over what it sees of itself: Python's code comes
cold after a step's numbers, and leaves what follows cold. With it account and clock agree to a few tenths of a percent
in benchmarks/monitor_overhead.py."""


@dataclass
class Budget:
    """Keeps the monitor's share of the wall time at or below `share`, always.

    The clock starts with the first step (or observed loss). What counts as the monitor's is all that it does from its
    making on: reading data, every hook, every measurement, what it writes. A measurement is begun only when its
    expected end finds the share kept: spent + expected ≤ share·(elapsed + expected). So the share is kept at the end
    of a measurement as far as the expectation came true, and falls from there to the next.

    Parts that are more expensive than the first, and less urgent, save up: `reserved` is their share of what the budget
    has for parts, which the first leaves alone until they can be afforded.

    Attributes:
        share: of the wall time; None for no limit.
        reserved: by part, its part of the budget.
        spent: seconds that were the monitor's, by part.
        other: seconds for all else.
        started: the time of the first step; None before.
    """

    share: float | None
    reserved: dict[str, float]
    spent: dict[str, float] = field(default_factory=dict)
    other: float = 0.0
    started: float | None = None
    _taken: dict[str, list[float]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds that were the monitor's."""
        return self.other + sum(self.spent.values())

    def elapsed(self, now: float) -> float:
        """Seconds since the first step."""
        return 0.0 if self.started is None else now - self.started

    def taken_share(self, now: float) -> float:
        """The monitor's share of the wall time until now; what it took before the first step counts as time too."""
        elapsed = self.elapsed(now)
        return self.total / elapsed if elapsed > 0 else (1.0 if self.total else 0.0)

    def counted(self, seconds: float) -> None:
        """A step was counted, or a loss, in `seconds` as far as the monitor could see."""
        self.other += UNSEEN * seconds

    def took(self, part: str, seconds: float) -> None:
        """A part was measured."""
        self.spent[part] = self.spent.get(part, 0.0) + seconds
        self._taken[part] = [*self._taken.get(part, []), seconds][-2:]

    def expected(self, part: str) -> float | None:
        """Seconds that a part will take; None before it was measured."""
        known = self._taken.get(part)
        return MARGIN * max(known) if known else None

    def room(self, now: float) -> float:
        """Seconds that may be spent from now on with the share kept."""
        if self.share is None:
            return math.inf
        return (self.share * self.elapsed(now) - self.total) / (1 - self.share)

    def wait(self, cost: float, now: float) -> float:
        """Seconds until there is room for a cost, if nothing is spent meanwhile."""
        lacking = cost - self.room(now)
        return lacking * (1 - self.share) / self.share if self.share is not None and lacking > 0 else 0.0

    def affordable(self, costs: dict[str, float], now: float) -> list[str]:
        """The parts to measure now, of those that could be, in order; none where the first is not affordable.

        Args:
            costs: expected seconds by part, the first that which every measurement has.
            now: the time.
        """
        if self.share is None:
            return list(costs)
        (first, cost), *others = costs.items()
        room = self.room(now)
        if first not in self._taken:  # begin with the cheapest
            return [first] if cost <= room else []
        saved = {part: self._saved(part, expected, now) for part, expected in others}
        chosen, needed = [first], cost
        for part, expected in others:
            if saved[part] >= expected and needed + expected <= room:
                chosen.append(part)
                needed += expected
        held = sum(min(saved[part], expected) for part, expected in others if part not in chosen)
        return chosen if needed + held <= room else []

    def _saved(self, part: str, expected: float, now: float) -> float:
        """Seconds of its own that a part has not spent, at most what it needs."""
        assert self.share is not None
        for_parts = self.share * self.elapsed(now) - self.other
        own = self.reserved.get(part, 0.0) * for_parts - self.spent.get(part, 0.0)
        return min(max(own, 0.0), expected)
