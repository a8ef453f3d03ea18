"""Run claims: every case with every seed, side by side on the machine's cores.

`run_claims` makes a unit of each claim, case and seed. A unit seeds torch and calls the claim's `measure`, which by
itself trains networks of `workloads` and looks at them through the public interface; nothing is shared between units,
so that the order and the number of processes change no figure. A unit that raises becomes a line of failure and no
other is lost: a full run takes an hour. The units of a claim come back as a `Result`, which asks the claim's `holds`
for each case; `terminal`, `page` and `Evidence.to_json` only show results.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from wellcond.evidence.claim import Claim, Figures, Runs
from wellcond.evidence.result import Evidence, Result

SEEDS, QUICK_SEEDS = 5, 2
"""Runs of each case."""

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
        jobs: processes, one thread each; default: the machine's cores. With 1 it runs in this process.
        progress: called after each run with the claim's name, the runs done and all.

    Returns:
        The same for the same claims on the same machine, whatever the number of processes.
    """
    seeds = range(QUICK_SEEDS if quick else SEEDS)
    units = [(claim, case, seed) for claim in claims for seed in seeds for case in claim.cases]
    done: dict[Unit, Figures | str] = {}
    for unit, outcome in zip(units, _outcomes(units, quick, jobs or os.cpu_count() or 1), strict=True):
        done[unit] = outcome
        if progress is not None:
            progress(unit[0].name, len(done), len(units))
    return Evidence([_result(claim, done) for claim in claims], quick)


def _outcomes(units: Sequence[Unit], quick: bool, jobs: int) -> Iterator[Figures | str]:
    """Each unit's figures, or its error in a line."""
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for unit in units:
                yield _outcome(partial(_measured, unit, quick))
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(_measured, unit, quick) for unit in units]
        try:
            for future in futures:
                yield _outcome(future.result)
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


def _result(claim: Claim, done: Mapping[Unit, Figures | str]) -> Result:
    mine = {unit[1:]: outcome for unit, outcome in done.items() if unit[0] is claim}
    failures = [f"{case}, seed {seed}: {text}" for (case, seed), text in mine.items() if isinstance(text, str)]
    runs = [
        Runs(case, [figures for (c, _), figures in mine.items() if c == case and not isinstance(figures, str)])
        for case in claim.cases
    ]
    return Result(claim, [r for r in runs if r.figures], failures)
