"""Examinations read back from JSON, of this version and of older ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wellcond.condition_numbers import SYMBOLS
from wellcond.examination.figures import CURVATURES, KAPPAS
from wellcond.examination.finding import Finding, Severity
from wellcond.examination.json import SCHEMA
from wellcond.linalg import Estimate
from wellcond.trials import Effect

_LATER = ("kappa_row_normalized",)
"""Figures that files of older versions lack."""


@dataclass(frozen=True)
class SavedExamination:
    """An examination that was written as JSON.

    Attributes:
        source: where it came from.
        data: the JSON as it is (docs/json.md).
        interrupted: the part that Ctrl-C ended, in a partial examination; else empty.
        severity: of the most severe finding.
        findings: as they were; without evidence or effect where the file is older than these.
        facts: of the run, by a name for people, as "learning rate".
        figures: every estimate by a name for people, as "κ̄ of PᵀHP", and the loss and its gradient's norm.
    """

    source: str
    data: dict[str, Any]
    interrupted: str
    severity: Severity
    findings: list[Finding]
    facts: dict[str, str]
    figures: dict[str, Estimate]

    @classmethod
    def from_json(cls, data: Any, source: str) -> SavedExamination:
        """From parsed JSON.

        Raises:
            ValueError: for what is no examination, is damaged, or was written by a newer wellcond.
        """
        check_schema(data, SCHEMA, source, "no wellcond examination")
        try:
            return cls(
                source,
                data,
                str(data.get("interrupted") or ""),
                Severity.of(data["severity"]),
                [_finding(f) for f in data["findings"]],
                dict(_facts(data)),
                dict(_figures(data)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
            raise ValueError(f"{source} is damaged: {what}") from error


def read_examination(path: str | Path) -> SavedExamination:
    """Read what `wellcond examine --json` wrote, now or with an older version.

    Raises:
        ValueError: if it can't be read, is no examination, is cut off, or was written by a newer wellcond.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: it is not JSON") from error
    except (json.JSONDecodeError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":  # JSON lines, as a history has
            check_schema(json.loads(text[: error.pos]), SCHEMA, str(path), "no wellcond examination")
        raise ValueError(f"{path} is not JSON, or is cut off: {error}") from error
    return SavedExamination.from_json(data, str(path))


def check_schema(data: Any, newest: str, source: str, otherwise: str) -> None:
    """Refuse what was not written under a schema, or an older version of it.

    Args:
        data: parsed JSON; its "schema" is looked at.
        newest: the name and version that are known.
        source: where data came from.
        otherwise: what it is under another schema.

    Raises:
        ValueError: with `source`, and what it is or what to do.
    """
    name, version = newest.rsplit("/", 1)
    schema = data.get("schema") if isinstance(data, dict) else None
    found = re.fullmatch(rf"{re.escape(name)}/(\d{{1,9}})", schema) if isinstance(schema, str) else None
    if found is None:
        named = "it names no schema" if schema is None else f"its schema is {str(schema)[:60]!r}, not {newest!r}"
        raise ValueError(f"{source} is {otherwise}: {named}")
    if int(found[1]) > int(version):
        raise ValueError(f"{source} has the schema {schema}, this wellcond reads up to {newest}: update wellcond")


def _facts(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    run = data["run"]
    for key in ("model", "parameters", "examples", "batches", "dtype", "mode", "curvature", "seed"):
        yield key, str(run[key])
    optimizer = run["optimizer"] or {"name": "none", "groups": []}
    yield "optimizer", str(optimizer["name"])
    groups = optimizer["groups"]
    for i, group in enumerate(groups):
        where = f"group {i}, " if len(groups) > 1 else ""
        for key, value in group.items():
            if key != "parameters":
                told = f"{value:.6g}" if isinstance(value, float) else str(value)
                yield f"{where}{'learning rate' if key == 'lr' else key.replace('_', ' ')}", told
    for name, number in data["versions"].items():
        yield f"version of {name}", str(number)


def _figures(data: dict[str, Any]) -> Iterator[tuple[str, Estimate]]:
    for key, name in (("loss", "loss"), ("gradient_norm", "gradient norm")):
        x = float(data["run"][key])
        # To what another order of the same float32 sums would do.
        yield name, Estimate(x, x - 1e-5 * abs(x), x + 1e-5 * abs(x), "measured, up to rounding")
    for kind, figures in data["curvature"].items():
        for key, symbol in SYMBOLS.items():
            yield f"{symbol} of {CURVATURES[kind]}", Estimate.from_json(figures[key])
    if data["edge_ratio"] is not None:
        yield "edge ratio", Estimate.from_json(data["edge_ratio"]["ratio"])
        yield "allowed learning rate", Estimate.from_json(data["edge_ratio"]["allowed_learning_rate"])
    if data["row_norms"] is not None:
        yield "correlation of √v with row norms", Estimate.from_json(data["row_norms"]["correlation"])
    for layer in data["layers"]:
        for key, name in KAPPAS.items():
            if key in layer or key not in _LATER:
                yield f"κ of layer “{layer['name'] or '(model)'}”, {name}", Estimate.from_json(layer[key])


def _finding(f: dict[str, Any]) -> Finding:
    key, title, text = (str(f[name]) for name in ("key", "title", "text"))
    evidence = {str(name): Estimate.from_json(e) for name, e in f.get("evidence", {}).items()}
    effect = None
    if tried := f.get("effect"):
        without, with_remedy = (Estimate.from_json(tried[end]) for end in ("without", "with_remedy"))
        effect = Effect(str(tried["figure"]), without, with_remedy)
    return Finding(key, Severity.of(f["severity"]), title, text, evidence, str(f.get("remedy", "")), effect)
