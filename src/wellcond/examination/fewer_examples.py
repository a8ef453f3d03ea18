"""Measuring on fewer examples when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from wellcond.examination.subject import Subject
from wellcond.problem import count_examples, free, halved, out_of_memory

T = TypeVar("T")


def on_fewer(given: Subject, look: Callable[[Subject], T], of_what: str) -> tuple[T, Subject]:
    """What `look` gives of a run, or of every second example of it until memory suffices; and the run so seen, with
    a note.

    Args:
        given: the run.
        look: sees it.
        of_what: what the note is about, to precede "of 16 of 64 examples".

    Raises:
        Exception: what `look` raises: out of memory, only with one example left.
    """
    subject, whole, failures = given, given.problem, given.failures
    failed = failures.count()
    while True:
        fewer = halved(subject.problem.batches)
        failures.fewer_next = fewer is not None
        try:
            return look(subject), subject
        except Exception as error:
            if fewer is None or not out_of_memory(error):
                raise
        finally:
            failures.fewer_next = False
        # Here and not above: the exception holds all that was in memory when it was raised.
        free(whole.device)
        failures.forget(failed)
        now = f"{sum(map(count_examples, fewer)):,} of {whole.examples:,} examples, {_most(fewer):,} at a time"
        note = f"Memory ran out with {_most(whole.batches):,} examples at a time: {of_what} of {now}."
        subject = given.over(fewer, note)


def _most(batches: list[object]) -> int:
    return max(map(count_examples, batches))
