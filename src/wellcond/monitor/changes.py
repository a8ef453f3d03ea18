"""Which findings changed since they were last looked for."""

from __future__ import annotations

from wellcond.examination import Finding
from wellcond.examination.findings import FINDINGS
from wellcond.monitor.measuring import Look
from wellcond.monitor.record import Change


class Findings:
    """The findings that stand, and on what they rest."""

    def __init__(self) -> None:
        self._standing: dict[str, tuple[str, str, frozenset[str]]] = {}  # severity, title, parts measured then

    def changes(self, look: Look) -> tuple[list[Change], list[str]]:
        """What is new, has another severity, or is gone although all parts were measured that it was found by; and
        notes on what could not be looked for."""
        found, notes = _findings(look)
        measured, changes = frozenset(look.seconds), []
        for key, finding in found.items():
            severity, before = finding.severity.word, self._standing.get(key)
            if before is None or before[0] != severity:
                changes.append(Change(key, severity, before and before[0], finding.title))
            self._standing[key] = severity, finding.title, measured & before[2] if before else measured
        if not notes:  # else one that is missing may stand
            for key in [k for k, (*_, basis) in self._standing.items() if k not in found and basis <= measured]:
                severity, title, _ = self._standing.pop(key)
                changes.append(Change(key, None, severity, title))
        return changes, notes


def _findings(look: Look) -> tuple[dict[str, Finding], list[str]]:
    """By key; whatever one of them raises costs no other."""
    found, notes = {}, []
    for find in FINDINGS:
        try:
            finding = find(look.measurements, look.subject)
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            notes.append(f"{find.__module__.rpartition('.')[2]} could not be looked for: {words}.")
        else:
            if finding is not None:
                found[finding.key] = finding
    return found, notes
