"""What a finding is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from wellcond.examination.trial import Effect
from wellcond.linalg import Estimate


class Severity(IntEnum):
    """How much a finding matters; the thresholds stand in each finding's file, their reasons in docs/findings.md."""

    GOOD = 0
    NOTICE = 1
    SEVERE = 2

    @property
    def word(self) -> str:
        """In lower case, as the page and the JSON have it."""
        return self.name.lower()


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
        effect: what the remedy did where it was tried or computed; None where it was not.
    """

    key: str
    severity: Severity
    title: str
    text: str
    evidence: dict[str, Estimate] = field(default_factory=dict)
    remedy: str = ""
    effect: Effect | None = None
