"""What a finding is, and what one is made from."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from wellcond.display import Table, paragraphs
from wellcond.examination.measurements import Measurements
from wellcond.examination.subject import Subject
from wellcond.linalg import Estimate
from wellcond.trials import Effect, NoEffect


class Severity(IntEnum):
    """How much a finding matters; the thresholds stand in each finding's file, their reasons in docs/findings.md."""

    GOOD = 0
    NOTICE = 1
    SEVERE = 2

    @property
    def word(self) -> str:
        """In lower case, as the page and the JSON have it."""
        return self.name.lower()

    @classmethod
    def of(cls, word: object) -> Severity:
        """The severity of that word.

        Raises:
            ValueError: for anything else.
        """
        for severity in cls:
            if severity.word == word:
                return severity
        raise ValueError(f"{str(word)[:40]!r} is no severity")

    @classmethod
    def worst(cls, severities: Iterable[Severity]) -> Severity:
        """The most severe of some; good where there are none."""
        return max(severities, default=cls.GOOD)

    def after(self, effect: Effect | NoEffect | None) -> Severity:
        """What is left of a severity when the remedy was tried: all of it where that clearly helped, or was not tried,
        one step less where it made no clear difference, nothing where it did harm."""
        if not effect or effect.saves():
            return self
        return Severity.GOOD if effect.better is False else Severity(max(0, self - 1))


@dataclass(frozen=True)
class Finding:
    """A conclusion with its evidence and what to do about it.

    Attributes:
        key: the finding's name, as in its file's.
        severity: good, notice or severe.
        title: the conclusion in one sentence, with its figures.
        text: why it matters.
        evidence: the figures behind it, by name.
        remedy: code or instruction; empty where nothing is to be done.
        effect: what the remedy did where it was tried or computed; None where it was not, in an examination, and before
            that what says why.
    """

    key: str
    severity: Severity
    title: str
    text: str
    evidence: dict[str, Estimate] = field(default_factory=dict)
    remedy: str = ""
    effect: Effect | NoEffect | None = None

    @property
    def gain(self) -> float:
        """By what factor the remedy made its figure smaller; 0 where it was not tried or did not surely help."""
        if not self.effect or not self.effect.better:
            return 0.0
        before, after = self.effect.without.value, self.effect.with_remedy.value
        return before / after if after > 0 else math.inf

    def _repr_html_(self) -> str:
        title = f"<p><strong>{self.severity.word}</strong> {html.escape(self.title)}</p>"
        remedy = f"<pre>{html.escape(self.remedy)}</pre>" if self.remedy else ""
        tried = [f"tried: {self.effect}"] if self.effect else []
        rows = [(name, str(e), e.how) for name, e in self.evidence.items()]
        evidence = Table(["measured", "", "how"], rows).html() if rows else ""
        return title + paragraphs([self.text]) + remedy + paragraphs(tried) + evidence


Find = Callable[[Measurements, Subject], Finding | None]
"""What each file of a finding has: the finding, or None where it does not apply."""
