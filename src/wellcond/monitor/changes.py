"""Which findings changed since they were last looked for."""

from __future__ import annotations

from wellcond.examination import Measurements
from wellcond.examination.findings import FINDINGS
from wellcond.monitor.record import Change


class Findings:
    """The findings that stand, and on what they rest."""

    def __init__(self) -> None:
        self._standing: dict[str, tuple[str, str, frozenset[str]]] = {}  # severity, title, and what was measured then

    def changes(self, m: Measurements, measured: frozenset[str]) -> list[Change]:
        """What is new, has another severity, or is gone although all was measured that it was found by.

        Args:
            m: what was measured.
            measured: names of what of it there is.
        """
        found = {f.key: f for find in FINDINGS if (f := find(m)) is not None}
        changes = []
        for key, finding in found.items():
            before = self._standing.get(key)
            if before is None or before[0] != finding.severity.word:
                changes.append(Change(key, finding.severity.word, before and before[0], finding.title))
            basis = measured if before is None else measured & before[2]
            self._standing[key] = finding.severity.word, finding.title, basis
        for key in [k for k, (*_, basis) in self._standing.items() if k not in found and basis <= measured]:
            severity, title, _ = self._standing.pop(key)
            changes.append(Change(key, None, severity, title))
        return changes
