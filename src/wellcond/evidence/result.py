"""What a run of the claims gave, and as JSON."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from wellcond.display import number
from wellcond.evidence.claim import Claim, Runs
from wellcond.examination import Severity, plain

FORMAT = 1
"""Version of the JSON."""


class Verdict(StrEnum):
    """What the runs say of a claim: it held in every case, in some, in none; or a run failed."""

    SUPPORTED = "supported"
    MIXED = "mixed"
    NOT_SUPPORTED = "not supported"
    NOT_MEASURED = "not measured"

    @property
    def severity(self) -> Severity:
        """That of a finding which says so, for colors."""
        return {Verdict.SUPPORTED: Severity.GOOD, Verdict.MIXED: Severity.NOTICE}.get(self, Severity.SEVERE)


@dataclass(frozen=True)
class Result:
    """A claim and its runs.

    Attributes:
        claim: the claim.
        runs: of every case.
        failures: runs that raised, "case, seed: error".
    """

    claim: Claim
    runs: Sequence[Runs]
    failures: Sequence[str] = ()

    def held(self) -> list[bool]:
        """Whether the rule holds in each case."""
        return [self.claim.holds(runs) for runs in self.runs]

    @property
    def verdict(self) -> Verdict:
        """By the claim's rule; none where a run failed."""
        if self.failures:
            return Verdict.NOT_MEASURED
        held = self.held()
        if all(held):
            return Verdict.SUPPORTED
        return Verdict.MIXED if any(held) else Verdict.NOT_SUPPORTED

    def cells(self, runs: Runs) -> list[str]:
        """Mean ± spread over seeds of every shown figure."""
        return [plus_minus(runs, name) for name in self.claim.shown]

    def to_json(self) -> dict[str, Any]:
        """The claim with every run's figures, as plain data."""
        told = {key: getattr(self.claim, key) for key in ("name", "hypothesis", "source", "rule")}
        cases = [
            {"case": runs.case, "holds": held, "runs": plain(runs.figures)}
            for runs, held in zip(self.runs, self.held(), strict=True)
        ]
        return {**told, "verdict": str(self.verdict), "failures": list(self.failures), "cases": cases}


@dataclass(frozen=True)
class Evidence:
    """Claims with their runs, and what they were measured with.

    Attributes:
        results: one per claim.
        quick: whether with fewer seeds and steps.
        about: machine, versions, date.
    """

    results: Sequence[Result]
    quick: bool
    about: dict[str, str] = field(default_factory=lambda: about())

    def counts(self) -> dict[Verdict, int]:
        """How many claims came out how, of the verdicts that any has."""
        counts = Counter(r.verdict for r in self.results)
        return {verdict: counts[verdict] for verdict in Verdict if counts[verdict]}

    def headline(self) -> str:
        """The counts in words.

        >>> Evidence([], quick=False, about={}).headline()
        '0 claims'
        """
        total = len(self.results)
        words = ", ".join(f"{count} {verdict}" for verdict, count in self.counts().items())
        return f"{total} claim{'' if total == 1 else 's'}" + (f": {words}" if words else "")

    def to_json(self) -> dict[str, Any]:
        """The claims with every run's figures, as plain data."""
        claims = [r.to_json() for r in self.results]
        return {"format": FORMAT, "quick": self.quick, "about": self.about, "claims": claims}


def read_evidence(path: str | Path, claims: Sequence[Claim]) -> Evidence:
    """What `Evidence.to_json` was written to, with the claims of this version of wellcond.

    Raises:
        ValueError: if the file holds something else, or claims that are not given.
        OSError: if it can't be read.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["format"] > FORMAT:
            raise ValueError(f"{path} has format {data['format']}, this wellcond reads up to {FORMAT}")
        known = {claim.name: claim for claim in claims}
        results = [
            Result(known[r["name"]], [Runs(case["case"], case["runs"]) for case in r["cases"]], r["failures"])
            for r in data["claims"]
        ]
        return Evidence(results, data["quick"], data["about"])
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not what `wellcond evidence --json` writes ({error})") from error


def about() -> dict[str, str]:
    """Machine, versions and date."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": f"wellcond {version('wellcond')}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": datetime.date.today().isoformat(),
    }


def plus_minus(runs: Runs, name: str) -> str:
    """Mean ± spread of a figure, a dash where it is not defined; a curve by its last point."""
    mean, spread = (float(x if x.ndim == 0 else x[-1]) for x in (runs.mean(name), runs.spread(name)))
    if math.isnan(mean):
        return "–"
    if not math.isfinite(mean) or spread == 0:
        return number(mean)
    return f"{number(mean)} ± {number(float(f'{spread:.1g}'))}"
