"""How far an examination is, over all its stages."""

from __future__ import annotations

from collections.abc import Callable

from wellcond.curvature import CurvatureOperator

Progress = Callable[[str, float, int], None]
"""(stage, products done, products planned), both over the whole examination; called after every product, and with parts
of one after each of several batches."""


class Course:
    """Products done over all stages of an examination, of a number that is known before the first.

    Args:
        planned: products of each stage, in the order of the stages.
        tell: who wants to know.
    """

    def __init__(self, planned: dict[str, int], tell: Progress | None):
        self.planned, self.tell = planned, tell
        self.total = sum(planned.values())

    def enter(self, stage: str, operator: CurvatureOperator) -> None:
        """From here the operator's products are this stage's. A stage that took fewer than planned counts as done."""
        if self.tell is None:
            return
        tell, stages, done = self.tell, list(self.planned), 0
        before = sum(self.planned[s] for s in stages[: stages.index(stage)])

        def at(part: float) -> None:
            tell(stage, before + min(done + part, self.planned[stage]), self.total)

        def one_more() -> None:
            nonlocal done
            done += 1
            at(0)

        operator.on_product, operator.on_batch = one_more, at
        at(0)

    def finish(self) -> None:
        """Nothing follows that takes products."""
        if self.tell is not None:
            self.tell("layers", self.total, self.total)
