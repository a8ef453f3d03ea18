"""Run claims: every case with every seed, side by side on the machine's cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial

import torch

from wellcond.evidence.claim import Claim, Figures, Runs
from wellcond.evidence.result import Evidence, Result

QUICK_SEEDS = 2

Unit = tuple[Claim, str, int]
"""A claim, one of its cases, a seed."""


def run_claims(
    claims: Sequence[Claim],
    *,
    quick: bool = False,
    jobs: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evidence:
    """Measure claims.

    Args:
        claims: which.
        quick: two seeds, and what else each claim leaves out.
        jobs: processes, one thread each; the machine's cores unless given. With 1 it runs in this process.
        progress: called after each run with the claim's name, the runs done and all.

    Returns:
        The same for the same claims on the same machine, whatever the number of processes.
    """
    units = [
        (claim, case, seed)
        for claim in claims
        for seed in range(min(claim.seeds, QUICK_SEEDS) if quick else claim.seeds)
        for case in claim.cases
    ]
    done: dict[tuple[str, str, int], Figures | str] = {}
    for (claim, case, seed), outcome in _outcomes(units, quick, jobs or os.cpu_count() or 1):
        done[claim.name, case, seed] = outcome
        if progress is not None:
            progress(claim.name, len(done), len(units))
    return Evidence([_result(claim, done) for claim in claims], quick)


def _outcomes(units: Sequence[Unit], quick: bool, jobs: int) -> Iterator[tuple[Unit, Figures | str]]:
    """Each unit with its figures, or with its error in a line, as they come."""
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for unit in units:
                yield unit, _outcome(partial(_measured, unit, quick))
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures: dict[Future[Figures], Unit] = {pool.submit(_measured, unit, quick): unit for unit in units}
        try:
            for future in as_completed(futures):
                yield futures[future], _outcome(future.result)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _measured(unit: Unit, quick: bool) -> Figures:
    claim, case, seed = unit
    torch.manual_seed(seed)
    return claim.measure(case, seed, quick)


def _outcome(measure: Callable[[], Figures]) -> Figures | str:
    try:
        return measure()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _result(claim: Claim, done: dict[tuple[str, str, int], Figures | str]) -> Result:
    mine = {key[1:]: outcome for key, outcome in sorted(done.items(), key=lambda x: x[0][2]) if key[0] == claim.name}
    failures = [f"{case}, seed {seed}: {text}" for (case, seed), text in mine.items() if isinstance(text, str)]
    runs = [
        Runs(case, [figures for (c, _), figures in mine.items() if c == case and not isinstance(figures, str)])
        for case in claim.cases
    ]
    return Result(claim, [r for r in runs if r.figures], failures)
