"""Is there something that could not be measured?"""

from __future__ import annotations

from wellcond.display import capitalized
from wellcond.examination.finding import Finding, Measurements, Severity, Subject


def find(m: Measurements, subject: Subject) -> Finding | None:
    """What failed until now, by its causes."""
    causes = subject.failures.causes()
    if not causes:
        return None
    title = "; ".join(f"{_listed(parts)} could not be measured, because {why}" for (why, _), parts in causes.items())
    places = "; ".join(dict.fromkeys(place for _, place in causes))
    text = f"It happened in {places}. The other figures stand; what rests on those that are missing is missing too."
    return Finding("not_measured", Severity.NOTICE, f"{capitalized(title)}.", text)


def _listed(parts: list[str]) -> str:
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last
