"""What a run of the claims gave, and as JSON."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from wellcond.evidence.claim import Claim, Figures, Runs, Verdict
from wellcond.linalg import number, number_to_json

FORMAT = 1
"""Version of the JSON."""


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

    @property
    def verdict(self) -> Verdict:
        """By the claim's rule; none where a run failed."""
        return Verdict.NOT_MEASURED if self.failures else self.claim.verdict(self.runs)

    def held(self) -> list[bool]:
        """Whether the rule holds in each case."""
        return [self.claim.holds(runs) for runs in self.runs]

    def cells(self, runs: Runs) -> list[str]:
        """Mean ± spread over seeds of every shown figure."""
        return [plus_minus(runs, name) for name in self.claim.shown]


@dataclass(frozen=True)
class Evidence:
    """Claims with their runs, and what they were measured with.

    Attributes:
        results: one a claim.
        quick: whether with fewer seeds and steps.
        about: machine, versions, date.
    """

    results: Sequence[Result]
    quick: bool
    about: dict[str, str] = field(default_factory=lambda: about())

    def to_json(self) -> dict[str, Any]:
        """Every run's figures, as plain data."""
        return {"format": FORMAT, "quick": self.quick, "about": self.about} | {
            "claims": [
                {"name": r.claim.name, "hypothesis": r.claim.hypothesis, "source": r.claim.source}
                | {"rule": r.claim.rule, "verdict": str(r.verdict), "failures": list(r.failures)}
                | {
                    "cases": [
                        {"case": runs.case, "holds": held, "runs": [_plain(run) for run in runs.figures]}
                        for runs, held in zip(r.runs, r.held(), strict=True)
                    ]
                }
                for r in self.results
            ]
        }


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
            Result(
                known[saved["name"]],
                [Runs(case["case"], [_figures(run) for run in case["runs"]]) for case in saved["cases"]],
                saved["failures"],
            )
            for saved in data["claims"]
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
    if len(runs.figures) < 2 or not math.isfinite(mean) or spread == 0:
        return number(mean)
    return f"{number(mean)} ± {number(float(f'{spread:.1g}'))}"


def _plain(figures: Figures) -> dict[str, Any]:
    return {
        name: [number_to_json(float(x)) for x in value] if isinstance(value, Sequence) else number_to_json(float(value))
        for name, value in figures.items()
    }


def _figures(plain: dict[str, Any]) -> Figures:
    def back(x: Any) -> float:
        return math.nan if x is None else float(x)

    return {name: [back(x) for x in value] if isinstance(value, list) else back(value) for name, value in plain.items()}
