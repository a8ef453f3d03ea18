"""The training run that is examined, as its measurements and findings see it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch.optim import Optimizer

from wellcond.condition_numbers import DENSE_LIMIT, Effort
from wellcond.display import listed
from wellcond.preconditioners import (
    NotPreconditionedError,
    NotReadableError,
    Preconditioner,
    preconditioner_of,
    reading_of,
    unwrapped_optimizer,
)
from wellcond.problem import Failures, Problem, TrainingRun, optimized_parameters, out_of_memory
from wellcond.trials import Trials


@dataclass(frozen=True)
class Settings:
    """How to measure; see `wellcond.examine`."""

    curvature: str = "hessian"
    mode: str = "train"
    batches: int | None = None
    dtype: torch.dtype | None = None
    quick: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.curvature not in ("hessian", "gauss-newton"):
            raise ValueError(f'got curvature={self.curvature!r}; it is "hessian" or "gauss-newton"')

    @property
    def effort(self) -> Effort:
        """Products to spend where the spectrum is not computed whole: a thorough examination, or a tenth of it."""
        if self.quick:
            return Effort(extremes=20, count=1, probes=3, probe_steps=1, trace_probes=2, gradient_steps=4)
        return Effort()

    @property
    def dense_limit(self) -> int:
        """Parameters up to which the spectrum is computed whole."""
        return 60 if self.quick else DENSE_LIMIT

    @property
    def trial_steps(self) -> int:
        """Steps of each trial of a remedy."""
        return 10 if self.quick else 50

    def trial_budget(self, size: int) -> float:
        """Gradients of the whole loss that all trials may cost, with `size` parameters: together with what is measured
        they stay under 3,000, or 300. Up to the size of a whole spectrum they take a few seconds, and any number."""
        if size <= DENSE_LIMIT:
            return math.inf
        return 12.0 if self.quick else 650.0


@dataclass
class Subject:
    """A training run, opened for measuring.

    Attributes:
        run: as it was given.
        problem: its loss over its data.
        optimizer: the torch optimizer itself; None without one, or where no preconditioner can be read off it.
        P: its preconditioner.
        trials: what tries remedies on copies.
        notes: what the reader should know about the measuring.
        left_out: names of trainable parameters that the optimizer does not have.
        failures: what makes the parts of the examination.
    """

    run: TrainingRun
    problem: Problem
    optimizer: Optimizer | None
    P: Preconditioner | None
    trials: Trials
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)

    @classmethod
    def of(cls, run: TrainingRun, settings: Settings, failures: Failures | None = None) -> Subject:
        """Read the run's data and its optimizer.

        Raises:
            TypeError, ValueError: for what can't be measured, with the remedy.
        """
        optimizer, P, chosen = None, None, None
        notes: list[str] = []
        left_out: list[str] = []
        failures = failures or Failures()
        if run.optimizer is not None:
            chosen, left_out = optimized_parameters(run.model, unwrapped_optimizer(run.optimizer))
            if left_out:
                notes.append(f"Not in the optimizer, taken as frozen: {listed(left_out)}.")
            try:
                optimizer, _ = reading_of(run.optimizer)
                P = preconditioner_of(optimizer)
            except (NotReadableError, NotPreconditionedError) as error:
                optimizer = None
                failures.add("what the optimizer does to the curvature", error)
        problem = _problem(run, settings, chosen, notes)
        budget = settings.trial_budget(problem.size)
        trials = Trials(run, problem, settings.trial_steps, settings.seed, failures, budget)
        return cls(run, problem, optimizer, P, trials, notes, left_out, failures)

    def over(self, batches: list[Any], note: str) -> Subject:
        """The same run over other batches, with one added note."""
        problem = self.problem.like(data=batches)
        trials = Trials(self.run, problem, self.trials.steps, self.trials.seed, self.failures, self.trials.budget)
        return replace(self, problem=problem, trials=trials, notes=[*self.notes, note])

    @cached_property
    def double(self) -> Problem | None:
        """The problem in float64, over its first batch; None where the model or the loss won't have it."""
        if self.problem.closed:
            return None
        try:
            problem = self.problem.like(data=self.problem.batches[:1], dtype=torch.float64)
            problem.loss()
        except Exception:  # whatever their code raises about a dtype
            return None
        return problem if problem.loss_dtype == torch.float64 else None


def _problem(run: TrainingRun, settings: Settings, chosen: Any, notes: list[str]) -> Problem:
    """The problem in the dtype asked for; unless asked, in float64 up to the size of a whole spectrum, quick or not:
    float32 has an error of its own, which on ill-scaled data no measurement in float32 shows."""
    problem = Problem(
        run.model,
        run.loss_fn,
        run.data,
        loss=run.loss,
        mode=settings.mode,
        batches=settings.batches,
        parameters=chosen,
        seed=settings.seed,
        dtype=settings.dtype,
    )
    if settings.dtype is None and problem.size <= DENSE_LIMIT and problem.dtype == torch.float32:
        double = problem.like(dtype=torch.float64)
        try:
            double.gradient()
            if double.loss_dtype == torch.float64:
                return double
            why = f"asked for float64 the loss is {double.loss_dtype}"
        except Exception as error:  # whatever their code raises about a dtype; what is wrong in float32 too comes again
            if out_of_memory(error):
                return double
            why = f"in float64 the model raises {type(error).__name__} {str(error)[:120]}"
        notes.append(f"Measured in float32: {' '.join(why.split())}.")
    return problem
