"""The records of a run, in memory and as JSON lines."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from wellcond.display import Renderer, Table
from wellcond.examination import Severity, check_schema
from wellcond.monitor.record import LABELS, Record

SCHEMA = "wellcond.monitor/1"


@dataclass
class History:
    """What a monitor recorded.

    Attributes:
        run: what was monitored: model, optimizer, sizes, settings.
        records: the measurements, in their order.
        finished: whether the monitor was removed; a run that was killed never is.
    """

    renderer: ClassVar[Renderer]
    """Draws the page and the plots; registered by `wellcond/__init__.py`."""

    run: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    finished: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    @property
    def headline(self) -> str:
        """One line about what was monitored."""
        run, state = self.run, "finished" if self.finished else "running, or killed"
        return f"{run['model']}, {run['parameters']:,} parameters, {run['optimizer']}: {state}"

    @property
    def unmeasured(self) -> str:
        """What is to be said while nothing was measured."""
        if not self.finished or self.records or self.run["overhead"] is None:
            return "Nothing was measured yet."
        return f"Nothing was measured: the run was too short for overhead={self.run['overhead']:g}."

    @property
    def severity(self) -> Severity:
        """Of the most severe finding that stands at the end."""
        return Severity.worst(Severity.of(word) for word, _ in self.findings().values())

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one figure, where it was measured.

        Args:
            name: a field of `Record`, such as "edge_ratio".
        """
        known = [(r.step, r.numbers()[name]) for r in self.records if name in r.numbers()]
        return [step for step, _ in known], [value for _, value in known]

    def intervals(self, name: str) -> tuple[list[int], list[float], list[float]]:
        """Steps, lower and upper ends of one estimate, where both ends are known."""
        known = [(r.step, r.estimates()[name]) for r in self.records if name in r.estimates()]
        known = [(step, e) for step, e in known if math.isfinite(e.high - e.low)]
        return [step for step, _ in known], [e.low for _, e in known], [e.high for _, e in known]

    def latest(self) -> dict[str, str]:
        """What was measured last of every figure, by field, as a person reads it."""
        told = {name: text for record in self.records for name, text in record.texts().items()}
        return {name: told[name] for name in LABELS if name in told}

    def findings(self) -> dict[str, tuple[str, str]]:
        """(severity, title) of the findings that stand at the end, by key, the most severe first."""
        standing: dict[str, tuple[str, str]] = {}
        for record in self.records:
            for change in record.changes:
                standing.pop(change.key, None)
                if change.severity is not None:
                    standing[change.key] = change.severity, change.title
        return dict(sorted(standing.items(), key=lambda item: -Severity.of(item[1][0])))

    def save(self, path: str | Path = "monitor.html") -> Path:
        """Write the page: one file that works offline."""
        path = Path(path)
        path.write_text(self.renderer.page(self), encoding="utf-8")
        return path

    def plot(self, ax: Any = None, figure: str = "edge_ratio") -> Any:
        """Draw one figure over the steps, with its interval.

        Args:
            ax: matplotlib axes; default: new ones.
            figure: "edge_ratio", "largest" (λ_max of H and PᵀHP), "kappa_mean", "kappa_effective", "loss" or
                "learning_rate".

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: without matplotlib (`pip install wellcond[plot]`).
            ValueError: for another figure.
        """
        return self.renderer.plot(self, figure, ax)

    def _repr_html_(self) -> str:
        findings = [f"{severity}: {title}" for severity, title in self.findings().values()]
        rows = [(LABELS[name], text) for name, text in self.latest().items()]
        return Table(["figure", "last"], rows, self.headline, findings).html()


_BEGINNING = b'{"kind": "run", "schema": "wellcond.monitor/'
_TORN = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading half a line raises, or one of something else."""


def read_history(path: str | Path) -> History:
    """The last run in a file that a monitor wrote, or is writing (`wc.Monitor(path=)`).

    A line that a killed process left torn is left out.

    Raises:
        ValueError: for a file that is no history, or that a newer wellcond wrote.
        OSError: if it can't be read.
    """
    history = _last_run(Path(path))
    if history is None:
        state = "holds half a line" if Path(path).stat().st_size else "is empty"
        raise ValueError(f"{path} {state}; a monitor writes to it once it is made")
    return history


def _last_run(path: Path) -> History | None:
    """As `read_history`; None where no run has begun, be it that the first line is torn."""
    history: History | None = None
    with path.open("rb") as file:
        for raw in file:
            line: dict[str, Any] = {}
            with contextlib.suppress(*_TORN):
                line = dict(json.loads(raw))
            kind = line.get("kind")
            begun = history is not None or raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw.strip())
            if kind == "run" or not begun:
                check_schema(line, SCHEMA, str(path), "not a history of wellcond.Monitor, by its first line")
            with contextlib.suppress(*_TORN):
                if kind == "run":
                    history = History(dict(line["run"]))
                elif kind == "record" and history is not None:
                    history.records.append(Record.from_json(line["record"]))
                elif kind == "end" and history is not None:
                    history.finished = True
    return history


class Writer:
    """Appends lines to a file, each flushed as a whole; when that fails it says so once and gives up.

    Args:
        path: a new file, or one that a monitor wrote before, which is continued by a new run; None for no file.

    Raises:
        ValueError: for a file that is something else.
    """

    def __init__(self, path: str | Path | None):
        self._path = None if path is None else Path(path).absolute()
        with self._giving_up():
            if self._path is not None and self._path.exists() and self._path.stat().st_size:
                _last_run(self._path)
                if not self._path.read_bytes().endswith(b"\n"):
                    self._append(b"\n")

    def write(self, kind: str, **content: Any) -> None:
        """One line."""
        text = json.dumps({"kind": kind, **content}, ensure_ascii=False, allow_nan=False)
        self._append(text.encode() + b"\n")

    def _append(self, line: bytes) -> None:
        if self._path is not None:
            with self._giving_up(), self._path.open("ab") as file:
                file.write(line)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            warnings.warn(
                f"wellcond.Monitor can't write {self._path} ({error.strerror or error}); the run goes on, and its "
                "history is kept in memory only",
                stacklevel=5,
            )
            self._path = None
