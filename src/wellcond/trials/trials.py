"""Remedies tried on a copy of the training run."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import nn

from wellcond.linalg import Estimate
from wellcond.preconditioners import unwrapped_optimizer
from wellcond.problem import (
    Failures,
    Isolation,
    LossNotFiniteError,
    Problem,
    TrainingRun,
    modules_of,
    move,
    random_state,
)
from wellcond.trials.changes import CHANGES
from wellcond.trials.networks import Network, NotApplicableError
from wellcond.trials.new_weights import fresh_share, renew
from wellcond.trials.one_step import TensorStep, first_step, step
from wellcond.trials.warm_up import WarmedUp, WarmUp
from wellcond.what_if import Variant, what_if

K = TypeVar("K")

Figure = Callable[[TrainingRun], float]
"""What is read off a trained copy."""

Change = Callable[[TrainingRun], TrainingRun | None]
"""Puts a remedy into a copy of the training run, whose data are the batches; or gives another run."""

SAVES = 0.1
"""The share of the loss that a change of the optimizer must save: a judgment, for less nobody should change one."""

REPEATS = 3
"""Orders of the batches that a trial is repeated in, where there are several, and draws of new weights: their spread is
its error."""

QUICK = 30
"""With fewer steps than this a trial from new weights looks at three learning rates, else further while they help."""

ANEW, SHORTER = 1.5, 0.4
"""Gradients that a step from new weights costs, measured with 100,000 parameters in one batch: 1.2 as it is, 1.7 with
batch norm. And the share of the steps that are taken where all of them would go beyond the budget."""

RATES = 4
"""Learning rates that a trial from new weights takes, mostly: its cost is told from it beforehand."""

WHAT_IF_RATES = 10
"""The same of each variant of `wellcond.what_if`."""


@dataclass(frozen=True)
class Effect:
    """What a remedy did where it was tried or computed: one figure, without it and with it, the lower the better.

    Attributes:
        figure: what is compared, as "loss after 50 steps".
        without: the run as it is.
        with_remedy: the same with the remedy in it.
    """

    figure: str
    without: Estimate
    with_remedy: Estimate

    @property
    def better(self) -> bool | None:
        """Whether the remedy helped; None where the intervals overlap."""
        if self.with_remedy.high < self.without.low:
            return True
        return False if self.without.high < self.with_remedy.low else None

    def saves(self, share: float = SAVES, now: float = math.inf) -> bool:
        """Whether the remedy is better, by more than this share of the figure as it is, and not for the worse of `now`,
        the figure before the steps: what only makes a run diverge more slowly mends something else."""
        fall = self.without.value - self.with_remedy.value
        enough = math.isinf(fall) or fall > share * abs(self.without.value)
        return bool(self.better) and enough and self.with_remedy.value < now

    def __str__(self) -> str:
        """As a sentence.

        >>> str(Effect("loss after 50 steps", Estimate(0.5, 0.5, 0.5, "trial"), Estimate(0.1, 0.1, 0.1, "trial")))
        'loss after 50 steps: 0.5 as it is, 0.1 with the remedy'
        """
        return f"{self.figure}: {self.without} as it is, {self.with_remedy} with the remedy"


class Trials:
    """Short trainings on copies of one run, all over the same batches from the same random state.

    The copies take the given optimizer's state with them, and what wellcond attached to it; the given run stays bit
    for bit as it was. A trial that the user's code can't do (a model that can't be copied, say) gives no effect, and
    `failures` knows why.

    Args:
        run: the training run.
        problem: of it, with the batches.
        steps: of each trial, one a batch; with 0 nothing is tried.
        seed: of dropout and of the order of the batches.
        failures: what makes the parts of the examination.
        budget: what trials may cost in all, in gradients of the loss over all batches; what would go beyond is not
            tried, and `notes` says so.
    """

    def __init__(
        self,
        run: TrainingRun,
        problem: Problem,
        steps: int,
        seed: int = 0,
        failures: Failures | None = None,
        budget: float = math.inf,
    ):
        self.run, self.problem, self.steps, self.seed, self.budget = run, problem, steps, seed, budget
        self.failures = failures or Failures()
        self.spent = 0.0
        self.notes: list[str] = []
        self._as_it_is: dict[tuple[Figure, int], list[float]] = {}
        self._steps: list[list[TensorStep]] | None = None
        self._from_new_weights: dict[Any, tuple[list[float], float]] = {}
        self._variants: dict[str, Variant] = {}
        self._beside = Isolation([], [], "train", None, modules_of(run.loss_fn, run.loss))

    @property
    def possible(self) -> bool:
        """Whether anything is tried."""
        return self.steps > 0 and self.run.optimizer is not None

    def effect(
        self,
        change: Change,
        figure: str = "",
        *,
        read: Figure | None = None,
        batches_a_step: int = 1,
    ) -> Effect | None:
        """A figure after the steps, as it is and with a change; None where it could not be tried.

        Args:
            change: the remedy.
            figure: its name; the loss over all data unless given.
            read: reads it off the trained copy, the lower the better.
            batches_a_step: gradients that a step with the remedy is the mean of.
        """
        read = read or self._loss_over_all
        known = (read, 1) in self._as_it_is
        if not self.possible or not self.affords(self._repeats * self._cost(batches_a_step + (not known))):
            return None

        def tried() -> Effect:
            if not known:
                self._as_it_is[read, 1] = self._figures(lambda run: run, read, 1)
            without, changed = self._as_it_is[read, 1], self._figures(change, read, batches_a_step)
            name = figure or f"loss after {self.steps} more steps"
            return Effect(name, self._estimate(without), self._estimate(changed))

        return self.failures.attempt("what a remedy does to a copy of the run", tried)

    def best(self, changes: Mapping[K, Change]) -> tuple[K, Effect] | None:
        """Which of some changes ends at the lowest loss, and its effect; None where none could be tried."""
        effects = {key: effect for key, change in changes.items() if (effect := self.effect(change)) is not None}
        if not effects:
            return None
        key = min(effects, key=lambda k: effects[k].with_remedy.value)
        return key, effects[key]

    def first_steps(self) -> list[list[TensorStep]]:
        """What one step of a copy does to each tensor, once for each of a few batches; empty where it can't be done."""
        if self._steps is None:

            def taken() -> list[list[TensorStep]]:
                found = []
                for i in range(min(REPEATS, len(self.problem.batches)) if self.run.optimizer is not None else 0):
                    with self._alone(self.seed + i):
                        found.append(first_step(self.copy(), self.problem.batches[i], self.problem))
                return found

            self._steps = self.failures.attempt("a step of a copy of the run", taken) or []
        return self._steps

    def normalized(self, change: str) -> Effect | None:
        """The same for a change that `wellcond.what_if` knows: each from new state of the optimizer and at the best of
        some learning rates, after its warm-up."""
        known = change in self._variants
        if not self.possible or not (known or self.affords(self._cost(2 * WHAT_IF_RATES))):
            return None

        def tried() -> Effect:
            if not known:
                found = what_if(
                    self.problem,
                    self.run.optimizer,
                    change,
                    warm_up=self.steps,
                    steps=1,
                    figures=False,
                    seed=self.seed,
                )
                self._variants |= found.variants
            how = f"{self.steps} steps from new state of the optimizer, at the best of some learning rates"
            before, after = (
                Estimate(v.loss, v.loss, v.loss, how) for v in (self._variants["as it is"], self._variants[change])
            )
            return Effect(f"loss after {self.steps} steps at the best learning rate", before, after)

        return self._where_it_applies(f"what “{change}” does to a copy of the run", tried)

    def from_new_weights(self, change: str | Callable[[Problem], Network]) -> Effect | None:
        """The loss after the steps from weights that the modules draw anew, as `reset_parameters` does: what a change
        of the network, one that `wellcond.what_if` knows by name or another, would do to training from its start.

        Each at the best of some learning rates around the given one, from new state of the optimizer; repeated with
        other draws at that rate. None where most weights belong to modules that don't say how they are drawn, or where
        it could not be tried.
        """
        if not self.possible or fresh_share(self.problem) < 0.5:
            return None
        build = CHANGES[change] if isinstance(change, str) else change
        made = {None: lambda given: Network.copy_of(given.model), change: build}
        missing = [key for key in made if key not in self._from_new_weights]
        steps = self.steps_anew
        if missing and not self.affords(self._cost_anew(len(missing), steps)):
            return None

        def tried() -> Effect:
            for key in missing:
                self._from_new_weights[key] = self._losses_from_new(made[key], steps)
            how = f"{steps} steps from new weights on copies of the run, at the best of some learning rates"
            before, after = (self._estimate(self._from_new_weights[key][0], how) for key in made)
            return Effect(f"loss after {steps} steps from new weights, at the best learning rate", before, after)

        return self._where_it_applies("what a change does to training from new weights", tried)

    def _where_it_applies(self, what: str, tried: Callable[[], Effect]) -> Effect | None:
        """A change that has no place in the network is no failure, but a note."""
        try:
            return self.failures.attempt(what, tried, let=(NotApplicableError,))
        except NotApplicableError as error:
            note = f"Not looked for: {what}, since {str(error).rstrip('.')}."
            self.notes += [] if note in self.notes else [note]
            return None

    @cached_property
    def steps_anew(self) -> int:
        """Of a trial from new weights: fewer where so many are beyond what is left of the budget at the first one."""
        fits = self.spent + self._cost_anew(2, self.steps) <= self.budget
        return self.steps if fits else max(1, int(SHORTER * self.steps))

    def _cost_anew(self, networks: int, steps: int) -> float:
        runs = networks * (RATES + REPEATS - 1)
        return runs * (ANEW * steps / len(self.problem.batches) + 0.5)

    def _cost(self, runs: float) -> float:
        """Of so many runs, in gradients of the whole loss: their steps, and the loss at their end, half a gradient."""
        return runs * (self.steps / len(self.problem.batches) + 0.5)

    def affords(self, cost: float) -> bool:
        """Whether so many gradients of the whole loss are within the budget; then they are spent."""
        if self.spent + cost > self.budget:
            note = f"Trials may cost {self.budget:g} gradients here; what would have cost more was not tried."
            self.notes += [] if note in self.notes else [note]
            return False
        self.spent += cost
        return True

    def best_rate(self, change: str | Callable[[Problem], Network]) -> float:
        """The learning rate that was the best from new weights with a change that was tried, over the given one."""
        return self._from_new_weights[change][1]

    def loss_of_new_weights(self) -> float | None:
        """The loss over all data before any step, of the network as it is; None where weights can't be drawn anew."""
        if not self.possible or fresh_share(self.problem) < 0.5:
            return None
        return self.failures.attempt(
            "the loss of new weights", lambda: self._renewed(Network.copy_of(self.problem.model), self.seed).loss()
        )

    def _renewed(self, network: Network, seed: int) -> Problem:
        own = {id(network.twins[id(p)]) for p in self.problem.parameters} | {id(p) for p in network.added()}
        with random_state(seed, self.problem.device):
            renew(network.model, own)
        return network.problem(self.problem)

    def _losses_from_new(self, build: Callable[[Problem], Network], steps: int) -> tuple[list[float], float]:
        """Once a draw of the weights, at the rate that is the best for the first; and that rate over the given one."""
        network, losses, factor = build(self.problem), [], math.nan
        for k in range(REPEATS):
            problem = self._renewed(network, self.seed + k)
            runs = network.warm_up(problem, self.run.optimizer, network.twins, network.P)
            if k:
                best = runs.run(factor, steps)
            else:
                try:
                    best = _at_its_best_rate(runs, steps)
                except ValueError:  # finite at no rate
                    return [math.inf], factor
                factor = best.factor
            losses.append(math.inf if best is None else best.loss)
        return losses, factor

    @property
    def _repeats(self) -> int:
        """Orders of the batches."""
        return REPEATS if len(self.problem.batches) > 1 else 1

    def _figures(self, change: Change, read: Figure, batches_a_step: int) -> list[float]:
        """After the steps, once an order of the batches."""
        return [self._figure(change, read, batches_a_step, self.seed + k) for k in range(self._repeats)]

    def _figure(self, change: Change, read: Figure, batches_a_step: int, seed: int) -> float:
        with self._alone(seed):
            run = self.copy()
            run = change(run) or run
            batches, wanted = len(run.data), self.steps * batches_a_step
            order = [i for _ in range(-(-wanted // batches)) for i in torch.randperm(batches).tolist()]
            for k in range(0, wanted, batches_a_step):
                chosen = [move(run.data[i], self.problem.device) for i in order[k : k + batches_a_step]]
                if not step(run, *chosen):
                    return math.inf
            return read(run)

    @contextlib.contextmanager
    def _alone(self, seed: int) -> Iterator[None]:
        """Inside, there is a random state, and stand-ins for the networks that the loss uses beside the copy."""
        with random_state(seed, self.problem.device), contextlib.ExitStack() as stack:
            if self._beside.modules:
                stack.enter_context(self._beside.entered(self.problem.device))
                self._beside.renew()
            yield

    def _loss_over_all(self, run: TrainingRun) -> float:
        try:
            return Problem(
                run.model, run.loss_fn, run.data, loss=run.loss, mode=self.problem.mode, seed=self.seed
            ).loss()
        except LossNotFiniteError:
            return math.inf

    def copy(self) -> TrainingRun:
        """The run with a model, an optimizer and a loss module of its own; its data are the batches."""
        optimizer = unwrapped_optimizer(self.run.optimizer)
        shared: tuple[Any, ...] = (self.problem.model, optimizer)
        if isinstance(self.run.loss_fn, nn.Module):
            shared += (self.run.loss_fn,)
        model, optimizer, *loss_fn = copy.deepcopy(shared)
        model.train(self.problem.mode == "train")
        return TrainingRun(
            model, loss_fn[0] if loss_fn else self.run.loss_fn, self.problem.batches, optimizer, self.run.loss
        )

    def _estimate(self, losses: Sequence[float], how: str = "") -> Estimate:
        several = "orders of its batches" if not how else "draws"
        how = how or f"{self.steps} steps on a copy of the run"
        if len(losses) > 1:
            how += f", in {len(losses)} {several}"
        return Estimate(sorted(losses)[len(losses) // 2], min(losses), max(losses), how)


def _at_its_best_rate(runs: WarmUp, steps: int) -> WarmedUp:
    if steps >= QUICK:
        return runs.best(steps, decades=1, halves=False)
    tried = [found for f in (0.1, 1.0, 10.0) if (found := runs.run(f, steps))]
    if not tried:
        raise ValueError("the loss is finite at none of three learning rates")
    return min(tried, key=lambda found: found.loss)
