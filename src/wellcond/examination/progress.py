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
        self.planned, self.total = planned, sum(planned.values())
        self.tell = tell or (lambda *_: None)

    def enter(self, stage: str, operator: CurvatureOperator) -> None:
        """From here the operator's products are this stage's. A stage that took fewer than planned counts as done."""
        stages, start = list(self.planned), operator.products
        before = sum(self.planned[s] for s in stages[: stages.index(stage)])

        def at(part: float = 0.0) -> None:
            done = operator.products - start + part
            self.tell(stage, before + min(done, self.planned[stage]), self.total)

        operator.on_product = operator.on_batch = at
        at()

    def finish(self) -> None:
        """Nothing follows that takes products."""
        self.tell("layers", self.total, self.total)
