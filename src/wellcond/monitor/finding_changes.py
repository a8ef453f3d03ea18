"""Which findings changed since they were last looked for."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from wellcond.examination import FINDINGS, Find
from wellcond.monitor.measuring import Look
from wellcond.monitor.record import FindingChange
from wellcond.problem import first_line

LITTLE = 0.02
"""A finding that takes less than this of a look's time is looked for every time."""


class Standing(NamedTuple):
    """A finding that was made: by what, and from which parts of a look."""

    severity: str
    title: str
    find: Find
    parts: frozenset[str]


class Findings:
    """The findings that stand, and on what they rest."""

    def __init__(self) -> None:
        self._standing: dict[str, Standing] = {}
        self._seconds: dict[Find, float] = {}  # as last looked for

    def changes(self, look: Look, whole: bool = True) -> tuple[list[FindingChange], list[str]]:
        """What is new, has another severity, or is gone although it was looked for and all parts were measured that it
        was found by; and notes on what could not be looked for.

        Args:
            look: what was measured.
            whole: whether to look for all, and not only for those that cost next to nothing.
        """
        found, looked_for, notes = {}, set(), []
        little = LITTLE * sum(look.seconds.values())
        for find in FINDINGS:
            if not whole and self._seconds.get(find, math.inf) > little:
                continue
            started = time.perf_counter()
            try:
                finding = find(look.measurements, look.subject)
            except Exception as error:  # costs no other finding
                notes.append(f"{find.__module__.rpartition('.')[2]} could not be looked for: {first_line(error)}.")
            else:
                looked_for.add(find)
                if finding is not None:
                    found[finding.key] = finding, find
            self._seconds[find] = time.perf_counter() - started
        measured, changes = frozenset(look.seconds), []
        for key, (finding, find) in found.items():
            severity, before = finding.severity.word, self._standing.get(key)
            if before is None or before.severity != severity:
                changes.append(FindingChange(key, severity, before and before.severity, finding.title))
            parts = measured & before.parts if before else measured
            self._standing[key] = Standing(severity, finding.title, find, parts)
        for key, was in list(self._standing.items()):
            if key not in found and was.find in looked_for and was.parts <= measured:
                del self._standing[key]
                changes.append(FindingChange(key, None, was.severity, was.title))
        return changes, notes
