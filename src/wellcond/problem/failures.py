"""What goes wrong in a part of an examination, and the one place where that is caught."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wellcond.problem.memory import out_of_memory

T = TypeVar("T")

LONGEST = 300
"""Characters of an exception's message that are told."""

_PACKAGE = str(Path(__file__).parents[1])
_NOT_THEIRS = (_PACKAGE, "<frozen", *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))


class Failures:
    """Makes the parts of an examination, one after the other: one that fails costs no other.

    Args:
        partial: whether Ctrl-C ends the examination with what there is; else it is raised.

    Attributes:
        interrupted: the part that Ctrl-C ended; empty where nothing did. All that follow are passed over.
        fewer_next: whether memory that ends in a part is to be raised, since it will be made again on fewer examples.
    """

    def __init__(self, partial: bool = False):
        self.partial, self.interrupted, self.fewer_next = partial, "", False
        self._parts: list[tuple[str, str, str]] = []  # what, why, where

    def attempt(
        self, what: str, part: Callable[[], T], *, let: tuple[type[Exception], ...] = (), always: bool = False
    ) -> T | None:
        """What a part gives; None where it fails, which is kept.

        Args:
            what: its name, to follow "… could not be measured".
            part: makes it.
            let: exceptions that are raised all the same, since the caller expects them.
            always: whether it is made after Ctrl-C too, from what is known; then it may fail in silence.
        """
        if self.interrupted and not always:
            return None
        try:
            return part()
        except KeyboardInterrupt:
            if self.interrupted or not self.partial:  # the second
                raise
            self.interrupted = what
        except let:
            raise
        except Exception as error:
            if self.fewer_next and out_of_memory(error):
                raise
            if not self.interrupted:
                self.add(what, error)
        return None

    def add(self, what: str, error: Exception) -> None:
        """Keep that a part failed."""
        self._parts.append((what, told(error), where(error)))

    def count(self) -> int:
        """How many parts have failed."""
        return len(self._parts)

    def forget(self, count: int) -> None:
        """Forget all but the first `count`, since their parts are made again."""
        del self._parts[count:]

    def causes(self) -> dict[tuple[str, str], list[str]]:
        """By (why, where) what failed for it."""
        found: dict[tuple[str, str], list[str]] = {}
        for what, why, place in dict.fromkeys(self._parts):
            found.setdefault((why, place), []).append(what)
        return found


def told(error: Exception) -> str:
    """Why it failed, in one line: our own words as they are, others' with their kind."""
    line = (str(error).strip().splitlines() or [""])[0] if raised_by_us(error) else f"of {first_line(error)}"
    line = line if len(line) <= LONGEST else line[:LONGEST] + " …"
    return line.rstrip(" .")


def where(error: BaseException) -> str:
    """The innermost line of the user's own code that an exception came through; else the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
    frame = (theirs or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"


def raised_by_us(error: BaseException) -> bool:
    """Whether an exception comes from a `raise` of this package: then its message is meant for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_PACKAGE)


def first_line(error: BaseException) -> str:
    """An exception's kind and the first line of its message that says something."""
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    except Exception:  # an exception class of theirs with a broken __str__
        lines = []
    return ": ".join([type(error).__name__, *lines[:1]])
