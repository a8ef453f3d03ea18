"""What the command writes, and one clear line where it can't."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from wellcond.cli.target import TargetError
from wellcond.examination import Examination
from wellcond.report import print_summary


def check_writable(*paths: Path | None) -> None:
    """Before minutes of work, not after.

    Raises:
        TargetError: for a directory, or a file in one that does not exist.
    """
    for path in paths:
        if path is None or str(path) == "-":
            continue
        if path.is_dir():
            raise TargetError(f"can't write {path}: it is a directory")
        if not path.absolute().parent.is_dir():
            raise TargetError(f"can't write {path}: the directory {path.absolute().parent} does not exist")


@contextlib.contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Around what writes; TargetError where that can't be done."""
    try:
        yield
    except OSError as error:
        raise TargetError(f"can't write {what}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """A file; TargetError where that can't be done."""
    with writing(path):
        path.write_text(text, encoding="utf-8")


def deliver(examination: Examination, console: Console, output: Path, json_file: Path | None) -> None:
    """The summary, the JSON and the page, each whatever becomes of the others.

    Raises:
        TargetError: for all that could not be written.
    """

    def as_json() -> None:
        text = json.dumps(examination.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        if piped:
            print(text, flush=True)
        elif json_file is not None:
            json_file.write_text(text + "\n", encoding="utf-8")

    failed: dict[str, str] = {}
    summary, piped = "the summary", str(json_file) == "-"
    parts: dict[str, Callable[[], object]] = {
        summary: lambda: print_summary(examination, console),
        "the JSON" if piped else str(json_file): as_json,
        str(output): lambda: examination.save(output),
    }
    for what, write in parts.items():
        try:
            write()
        except OSError as error:
            failed[what] = f"can't write {what}: {error.strerror}"
            if what == summary or piped:
                _abandon(sys.stdout)
    if summary not in failed and str(output) not in failed:
        say(console, f"Page: {output}", prefix="")
    if failed:
        raise TargetError("; ".join(failed.values()))


def _abandon(stream: Any) -> None:
    """Let a stream that takes nothing more swallow what is left in its buffer, which Python would complain about at its
    end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Terminal(Console):
    """Falls silent when its reader has gone (`| head`), where rich would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _abandon(self.file)


def say(console: Console, text: str, prefix: str = "wellcond: ") -> None:
    """A line as it is: no markup, no color, not wrapped."""
    console.print(prefix + text, markup=False, highlight=False, soft_wrap=True)
