"""The records of a run, in memory and as JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from wellcond.monitor.record import Record

SCHEMA = "wellcond.monitor/1"


class HistoryError(ValueError):
    """A file that is no history."""


@dataclass
class History:
    """What a monitor recorded.

    Attributes:
        run: what was monitored: model, optimizer, sizes, settings.
        records: the measurements, in their order.
        finished: whether the monitor was removed; a run that was killed never is.
    """

    run: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    finished: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one figure, where it was measured.

        Args:
            name: a field of `Record`, such as "edge_ratio".
        """
        known = [(r.step, r.numbers()[name]) for r in self.records if name in r.numbers()]
        return [step for step, _ in known], [value for _, value in known]

    def findings(self) -> dict[str, tuple[str, str]]:
        """(severity, title) of the findings that stand at the end, by key."""
        standing: dict[str, tuple[str, str]] = {}
        for record in self.records:
            for change in record.changes:
                standing.pop(change.key, None)
                if change.severity is not None:
                    standing[change.key] = change.severity, change.title
        return standing

    @classmethod
    def read(cls, path: str | Path) -> History:
        """The last run in a file that a monitor wrote, or is writing; a torn last line is left out.

        Raises:
            HistoryError: for a file that is none; also one line.
            OSError: if it can't be read.
        """
        return read_history(path)


def read_history(path: str | Path) -> History:
    """The last run in a file that a monitor wrote, or is writing (`wc.Monitor(path=)`).

    A line that a killed process left torn is left out.

    Raises:
        ValueError: for a file that is no history.
        OSError: if it can't be read.
    """
    path = Path(path)
    history: History | None = None
    with path.open("rb") as file:
        for raw in file:
            if not raw.strip():
                continue
            try:
                line = json.loads(raw)
                kind = line["kind"]
                if kind == "run":
                    if line["schema"] != SCHEMA:
                        raise HistoryError(f"{path} is of schema {line['schema']!r}; this version reads {SCHEMA!r}")
                    history = History(line["run"])
                elif history is None:
                    raise HistoryError(f"{path} is not a history of wellcond.Monitor: it begins with something else")
                elif kind == "record":
                    history.records.append(Record.from_json(line["record"]))
                elif kind == "end":
                    history.finished = True
            except HistoryError:
                raise
            except (ValueError, KeyError, TypeError) as error:
                if history is None:
                    raise HistoryError(f"{path} is not a history of wellcond.Monitor") from error
                # A process that was killed while it wrote; the run that was resumed goes on after it.
                continue
    if history is None:
        raise HistoryError(f"{path} is empty; a monitor writes to it once it is made")
    return history


class Writer:
    """Appends lines to a file, each flushed as a whole; when that fails it says so once and gives up.

    Args:
        path: a new file, or one that a monitor wrote before, which is continued by a new run.

    Raises:
        ValueError: for a file that is something else.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: IO[bytes] | None = None
        with self._giving_up():
            torn = False
            if path.exists() and path.stat().st_size:
                read_history(path)
                with path.open("rb") as file:
                    file.seek(-1, os.SEEK_END)
                    torn = file.read(1) != b"\n"
            self._file = path.open("ab")
            if torn:
                self._file.write(b"\n")

    def write(self, kind: str, **content: Any) -> None:
        """One line."""
        if self._file is None:
            return
        with self._giving_up():
            text = json.dumps({"kind": kind, **content}, ensure_ascii=False, allow_nan=False)
            self._file.write(text.encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with self._giving_up():
                self._file.close()
            self._file = None

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            file, self._file = self._file, None
            warnings.warn(
                f"wellcond.Monitor can't write {self.path} ({error.strerror or error}); the run goes on, and its "
                "history is kept in memory only",
                stacklevel=4,
            )
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
