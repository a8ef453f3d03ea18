"""What changed between two examinations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wellcond.display import paragraphs
from wellcond.examination import CURVATURES, OF_THETA, Examination, Finding, SavedExamination, Severity, plain
from wellcond.linalg import Estimate

SCHEMA = "wellcond.comparison/1"
SAME = 1e-3
"""Figures that are exact, of data that differ by their rounding, are no change."""

_COMPARABLE = {"model": "models", "parameters": "numbers of parameters", "dtype": "dtypes", "mode": "modes"}
"""Facts of the run that figures can't be compared across without a warning."""


@dataclass(frozen=True)
class FigureChange:
    """A figure whose intervals are apart.

    Attributes:
        figure: its name.
        before, after: both.
        factor: after over before; not defined unless both are positive.
    """

    figure: str
    before: Estimate
    after: Estimate

    @property
    def factor(self) -> Estimate:
        a, b = self.before, self.after
        if not (a.low > 0 and b.low > 0):
            return Estimate.undefined("not both are positive")
        low, high = b.low / a.high, b.high / a.low
        value = b.value / a.value if math.isfinite(a.value) and math.isfinite(b.value) else low
        return Estimate(value, low, high, "ratio of both", max(0.0, a.confidence + b.confidence - 1))

    @property
    def tells(self) -> bool:
        """Whether the intervals are apart, and the figures too as far as a person reads them."""
        a, b = self.before, self.after
        return a.apart_from(b) and not math.isclose(a.value, b.value, rel_tol=SAME)

    def __str__(self) -> str:
        change, factor = f"{self.figure}: {self.before} → {self.after}", self.factor
        if not factor.defined:
            return change
        # "at least" before, so that nothing bounds the factor from below
        return f"{change}, × less than {factor.high:.3g}" if factor.low == 0 else f"{change}, × {factor}"


@dataclass(frozen=True)
class Comparison:
    """Two examinations, side by side. A finding counts from severity notice on: good ones are not counted.

    Attributes:
        before, after: both.
        warnings: why figures may not be comparable.
        facts: what differs between the runs: name, before, after.
        new: findings that were not there before, or only as good.
        gone: those that are no more, or good now.
        changed: findings whose severity changed, before and after.
        same: findings of the same severity, as they are after.
        apart: figures whose intervals are apart.
        equal: names of the figures that are the same within their errors.
        not_compared: names of figures that one examination has not, or that belong to another θ.
    """

    before: SavedExamination
    after: SavedExamination
    warnings: list[str]
    facts: list[tuple[str, str, str]]
    new: list[Finding]
    gone: list[Finding]
    changed: list[tuple[Finding, Finding]]
    same: list[Finding]
    apart: list[FigureChange]
    equal: list[str]
    not_compared: list[str]

    @property
    def severity(self) -> Severity:
        """Of the most severe finding that is new or became more severe."""
        worse = [after for before, after in self.changed if after.severity > before.severity]
        return Severity.worst(f.severity for f in [*self.new, *worse])

    def lines(self) -> Iterator[tuple[str, str]]:
        """(style, text): "head", "warning", "bad", "good" or ""."""
        yield "head", f"{self.before.source} → {self.after.source}"
        yield from (("warning", f"! {warning}") for warning in self.warnings)
        was, now = self.before.severity, self.after.severity
        tone = "bad" if now > was else "good" if now < was else ""
        yield tone, f"verdict: {was.word}" + (f" → {now.word}" if now != was else ", as before")
        yield from (("bad", f"+ new, {f.severity.word}: {f.title}") for f in self.new)
        yield from (("good", f"- gone, was {f.severity.word}: {f.title}") for f in self.gone)
        for before, after in self.changed:
            tone = "bad" if after.severity > before.severity else "good"
            yield tone, f"~ {before.severity.word} → {after.severity.word}: {after.title}"
        yield from (("", f"= still {f.severity.word}: {f.title}") for f in self.same)
        yield from (("", f"{name}: {before} → {after}") for name, before, after in self.facts)
        yield from (("", str(change)) for change in self.apart)
        equal = f"{len(self.equal)} figures are the same within their errors"
        yield "", equal + (f", {len(self.not_compared)} were not compared" if self.not_compared else "")

    def __str__(self) -> str:
        return "\n".join(text for _, text in self.lines())

    def _repr_html_(self) -> str:
        return paragraphs(text for _, text in self.lines())

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries, lists, strings and numbers."""
        return plain(
            {
                "schema": SCHEMA,
                "before": self.before.source,
                "after": self.after.source,
                "warnings": self.warnings,
                "severity": {"before": self.before.severity, "after": self.after.severity},
                "facts": [{"name": name, "before": before, "after": after} for name, before, after in self.facts],
                "findings": {
                    "new": [_told(f) for f in self.new],
                    "gone": [_told(f) for f in self.gone],
                    "changed": [{"before": _told(before), "after": _told(after)} for before, after in self.changed],
                    "same": [_told(f) for f in self.same],
                },
                "figures": {
                    "apart": [{**vars(c), "factor": c.factor} for c in self.apart],
                    "equal": self.equal,
                    "not_compared": self.not_compared,
                },
            }
        )


def compare(before: SavedExamination | Examination, after: SavedExamination | Examination) -> Comparison:
    """What changed from one examination to another.

    Args:
        before: from `wellcond.examine`, or from `wellcond.read_examination`.
        after: likewise.

    Raises:
        TypeError: for anything else.
    """
    a, b = _saved(before, "before"), _saved(after, "after")
    known, present = _counted(a), _counted(b)
    both = [(known[key], f) for key, f in present.items() if key in known]
    warnings, incomparable = _warnings(a.data, b.data)
    warnings += [f"{x.source} is partial: it was interrupted at {x.interrupted}" for x in (a, b) if x.interrupted]
    figures = {**a.figures, **b.figures}
    # One that neither examination could give a number for is no difference.
    defined = {name: [name in x.figures and x.figures[name].defined for x in (a, b)] for name in figures}
    shared = [name for name in figures if all(defined[name]) and name not in incomparable]
    changes = {name: FigureChange(name, a.figures[name], b.figures[name]) for name in shared}
    return Comparison(
        before=a,
        after=b,
        warnings=warnings,
        facts=[
            (name, was, now)
            for name in {**a.facts, **b.facts}
            if (was := a.facts.get(name, "–")) != (now := b.facts.get(name, "–"))
        ],
        new=[f for key, f in present.items() if key not in known],
        gone=[f for key, f in known.items() if key not in present],
        changed=[(was, now) for was, now in both if was.severity != now.severity],
        same=[now for was, now in both if was.severity == now.severity],
        apart=[change for change in changes.values() if change.tells],
        equal=[name for name, change in changes.items() if not change.tells],
        not_compared=[name for name in figures if any(defined[name]) and name not in changes],
    )


def _saved(x: Any, name: str) -> SavedExamination:
    if isinstance(x, Examination):
        return SavedExamination.from_json(x.to_json(), name)
    if isinstance(x, SavedExamination):
        return x
    raise TypeError(f"{name} is a {type(x).__name__}; give an examination, or what wellcond.read_examination returns")


def _counted(x: SavedExamination) -> dict[str, Finding]:
    return {f.key: f for f in x.findings if f.severity > Severity.GOOD}


def _warnings(a: dict[str, Any], b: dict[str, Any]) -> tuple[list[str], set[str]]:
    """Why figures may not be comparable, and those that are not."""
    found = [
        f"different {many}: {a['run'][key]} and {b['run'][key]}"
        for key, many in _COMPARABLE.items()
        if a["run"][key] != b["run"][key]
    ]
    incomparable: set[str] = set()
    for kind, name in CURVATURES.items():
        thetas = [x["curvature"][kind]["theta"] for x in (a, b) if kind in x["curvature"]]
        if len(thetas) == 2 and not math.isclose(*thetas, rel_tol=1e-6):
            below, above = (f"{theta:.0e}" for theta in thetas)
            listed = {f"{symbol} of {name}" for symbol in OF_THETA}
            found.append(f"θ of {name} is {below} and {above}: {', '.join(sorted(listed))} are not compared")
            incomparable |= listed
    return found, incomparable


def _told(f: Finding) -> dict[str, str]:
    return {"key": f.key, "severity": f.severity.word, "title": f.title}
