"""Remedies tried on copies of the training run.

`Trials` is what findings ask: it says what a remedy does to the run, or why that was not tried. Every trial first asks
for its cost (`refused`), is then made inside `Failures.attempt`, so that one that the user's code can't do costs no
other, and trains copies only. There are two ways to train, because there are two questions.

- From where the run is (`effect`, `best`, `first_steps`): the remedy is a change of the optimizer or of some values, so
  the copy takes the optimizer's state with it and takes the user's own steps (copy_of_run.py), once for each of a few
  orders of the batches, whose spread is the error.
- By a changed network (`from_new_weights`, `normalized`): what the optimizer knows is about another function, so each
  network (`changes`) starts from a new optimizer and is compared at the best of some learning rates (`training`, which
  `wellcond.what_if` uses too). From new weights this is repeated with other draws at the rate that was best for the
  first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import torch

from wellcond.linalg import Estimate
from wellcond.preconditioners import reading_for, unwrapped_optimizer
from wellcond.problem import Failures, LossNotFiniteError, Problem, TrainingRun, move, random_state
from wellcond.trials.copy_of_run import TensorStep, alone, copy_of, first_step, step
from wellcond.trials.effect import Effect, NoEffect, why_none
from wellcond.trials.network import Network, NotApplicableError
from wellcond.trials.network_changes import CHANGES
from wellcond.trials.new_weights import fresh_share, renew
from wellcond.trials.rate_search import Training

K = TypeVar("K")

Figure = Callable[[TrainingRun], float]
"""What is read off a trained copy."""

RunChange = Callable[[TrainingRun], TrainingRun | None]
"""Puts a remedy into a copy of the training run, whose data are the batches; or gives another run."""

Build = Callable[[Problem], Network]
"""Makes a changed network."""

REPEATS = 3
"""Orders of the batches that a trial is repeated in, where there are several, and draws of new weights: their spread is
its error."""

QUICK = 30
"""With fewer steps than this a trial from new weights looks at three learning rates, else further while they help."""

STEP_COST = 1.5
"""Gradients that a step from new weights costs, measured with 100,000 parameters in one batch: 1.2 as it is, 1.7 with
batch norm."""

SHORTER = 0.4
"""The share of the steps from new weights that are taken where all of them would go beyond the budget."""

RATES, RATES_WITH_HALVES = 4, 10
"""Learning rates that a trial mostly takes from new weights, and from where the run is: its cost, known beforehand."""


class Trials:
    """Short trainings on copies of one run, all over the same batches from the same random state.

    The given run stays bit for bit as it was.

    Args:
        run: the training run.
        problem: of it, with the batches.
        steps: of each trial, one per batch; with 0 nothing is tried.
        seed: of dropout and of the order of the batches.
        failures: what makes the parts of the examination.
        budget: what trials may cost in all, in gradients of the loss over all batches; what would go beyond is not
            tried.

    Attributes:
        notes: what the reader should know about what was not tried.
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
        self._as_it_is: dict[Figure, list[float]] = {}
        self._from_new_weights: dict[Build, tuple[list[float], float]] = {}

    @property
    def possible(self) -> bool:
        """Whether anything is tried."""
        return self.steps > 0 and self.run.optimizer is not None

    def effect(
        self,
        change: RunChange,
        figure: str = "",
        *,
        read: Figure | None = None,
        batches_a_step: int = 1,
    ) -> Effect | NoEffect:
        """A figure after the steps, as it is and with a change.

        Args:
            change: the remedy.
            figure: its name; default: the loss over all data.
            read: reads it off the trained copy, the lower the better.
            batches_a_step: gradients that a step with the remedy is the mean of.
        """
        read = read or self._loss_over_all
        known = read in self._as_it_is
        cost = self._repeats * self._cost(batches_a_step + (not known))

        def tried() -> Effect:
            if not known:
                self._as_it_is[read] = self._figures(lambda run: run, read, 1)
            without, changed = self._as_it_is[read], self._figures(change, read, batches_a_step)
            how = f"{self.steps} steps on a copy of the run"
            before, after = (_estimate(figures, how, "orders of its batches") for figures in (without, changed))
            return Effect(figure or f"loss after {self.steps} more steps", before, after)

        return self._attempt("what a remedy does to a copy of the run", cost, tried)

    def best(self, changes: Mapping[K, RunChange]) -> tuple[K, Effect | NoEffect]:
        """Which of some changes ends at the lowest loss, and its effect; the first one where none could be tried."""
        tried = {key: self.effect(change) for key, change in changes.items()}
        effects = {key: effect for key, effect in tried.items() if isinstance(effect, Effect)}
        if not effects:
            return next(iter(changes)), why_none(tried.values())
        return min(effects.items(), key=lambda found: found[1].with_remedy.value)

    @cached_property
    def first_steps(self) -> list[list[TensorStep]]:
        """What one step of a copy does to each tensor, once for each of a few batches; empty where it can't be done."""

        def taken() -> list[list[TensorStep]]:
            found = []
            for i, batch in enumerate(self.problem.batches[:REPEATS] if self.run.optimizer is not None else []):
                with alone(self.problem, self.seed + i):
                    found.append(first_step(copy_of(self.run, self.problem), batch, self.problem))
            return found

        return self.failures.attempt("a step of a copy of the run", taken) or []

    def of_network(self, change: str, build: Build | None = None) -> Effect | NoEffect:
        """What a change of the network does, from new weights; where that can't be tried, from where it is.

        Args:
            change: one that `wellcond.what_if` knows by name.
            build: makes it in another way, where the weights are new.
        """
        anew = self.from_new_weights(build or change)
        if anew:
            return anew
        here = self.normalized(change)
        return here or why_none([anew, here])

    def normalized(self, change: str) -> Effect | NoEffect:
        """The loss after the steps, as it is and with a change that `wellcond.what_if` knows: each from new state of
        the optimizer and at the best of some learning rates."""

        def tried() -> Effect:
            reading_for(unwrapped_optimizer(self.run.optimizer))
            networks = Network.copy_of(self.problem.model), CHANGES[change](self.problem)
            losses = [Training(n, self.problem, self.run.optimizer).best(self.steps).loss for n in networks]
            how = f"{self.steps} steps from new state of the optimizer, at the best of some learning rates"
            before, after = (Estimate.exactly(loss, how) for loss in losses)
            return Effect(f"loss after {self.steps} steps at the best learning rate", before, after)

        return self._attempt(f"what “{change}” does to a copy of the run", 2 * self._cost(RATES_WITH_HALVES), tried)

    def from_new_weights(self, change: str | Build) -> Effect | NoEffect:
        """The loss after the steps from weights that the modules draw again, as `reset_parameters` does: what a
        change of the network, one that `wellcond.what_if` knows by name or another, does to training from its start.

        Each at the best of some learning rates around the given one, from new state of the optimizer; repeated with
        other draws at that rate. There is none where most weights belong to modules that don't say how they are drawn.
        """
        if fresh_share(self.problem) < 0.5:
            return NoEffect()
        builders = _as_given, CHANGES[change] if isinstance(change, str) else change
        missing = [build for build in builders if build not in self._from_new_weights]
        steps = self.steps_from_new_weights

        def tried() -> Effect:
            for build in missing:
                self._from_new_weights[build] = self._losses_from_new(build, steps)
            how = f"{steps} steps from new weights on copies of the run, at the best of some learning rates"
            before, after = (_estimate(self._from_new_weights[build][0], how, "draws") for build in builders)
            return Effect(f"loss after {steps} steps from new weights, at the best learning rate", before, after)

        cost = self._cost_from_new_weights(len(missing), steps)
        return self._attempt("what a change does to training from new weights", cost, tried)

    def best_rate(self, change: str) -> float:
        """The learning rate that was the best from new weights with a change that was tried, over the given one."""
        return self._from_new_weights[CHANGES[change]][1]

    def loss_of_new_weights(self) -> float | None:
        """The loss over all data before any step, of the network as it is; None where weights can't be drawn again."""
        if not self.possible or fresh_share(self.problem) < 0.5:
            return None

        def measured() -> float:
            network = _as_given(self.problem)
            self._renew(network, self.seed)
            return network.problem(self.problem).loss()

        return self.failures.attempt("the loss of new weights", measured)

    @cached_property
    def steps_from_new_weights(self) -> int:
        """Steps of a trial from new weights: fewer where all would go beyond what is left of the budget at the first
        one."""
        fits = self.spent + self._cost_from_new_weights(2, self.steps) <= self.budget
        return self.steps if fits else max(1, int(SHORTER * self.steps))

    def refused(self, cost: float) -> NoEffect | None:
        """Why a trial of this cost, in gradients of the whole loss, is not made; None where it is, and is paid for."""
        if not self.possible:
            return NoEffect()
        if self.spent + cost > self.budget:
            what = "what would have cost more was not tried"
            return self._noted(f"Trials may cost {self.budget:g} gradients here; {what}.")
        self.spent += cost
        return None

    def _attempt(self, what: str, cost: float, trial: Callable[[], Effect]) -> Effect | NoEffect:
        """A change that has no place in the network is no failure, but a note."""
        refused = self.refused(cost)
        if refused is not None:
            return refused
        try:
            effect = self.failures.attempt(what, trial, let=(NotApplicableError,))
        except NotApplicableError as error:
            return self._noted(f"Not looked for: {what}, since {str(error).rstrip('.')}.")
        return effect or NoEffect("the remedy could not be tried", failed=True)

    def _noted(self, note: str) -> NoEffect:
        if note in self.notes:
            return NoEffect()
        self.notes.append(note)
        return NoEffect(f"the remedy was not tried: {note.rstrip('.')}")

    def _cost(self, runs: float) -> float:
        """Of runs from where the run is, in gradients of the whole loss: their steps, and the loss at their end."""
        return runs * (self.steps / len(self.problem.batches) + 0.5)

    def _cost_from_new_weights(self, networks: int, steps: int) -> float:
        return networks * (RATES + REPEATS - 1) * (STEP_COST * steps / len(self.problem.batches) + 0.5)

    def _renew(self, network: Network, seed: int) -> None:
        own = {id(network.twins[id(p)]) for p in self.problem.parameters} | {id(p) for p in network.added()}
        with random_state(seed, self.problem.device):
            renew(network.model, own)

    def _losses_from_new(self, build: Build, steps: int) -> tuple[list[float], float]:
        """Once for each draw of the weights, at the rate that is the best for the first; and that rate over the given
        one."""
        network = build(self.problem)
        training = Training(network, self.problem, self.run.optimizer)
        self._renew(network, self.seed)
        try:
            best = training.best(steps, decades=1, further=steps >= QUICK, halves=False)
        except ValueError:  # finite at no rate
            return [math.inf], math.nan
        losses = [best.loss]
        for k in range(1, REPEATS):
            self._renew(network, self.seed + k)
            found = training.run(best.factor, steps)
            losses.append(math.inf if found is None else found.loss)
        return losses, best.factor

    @property
    def _repeats(self) -> int:
        """Orders of the batches."""
        return REPEATS if len(self.problem.batches) > 1 else 1

    def _figures(self, change: RunChange, read: Figure, batches_a_step: int) -> list[float]:
        """After the steps, once for each order of the batches."""
        return [self._figure(change, read, batches_a_step, self.seed + k) for k in range(self._repeats)]

    def _figure(self, change: RunChange, read: Figure, batches_a_step: int, seed: int) -> float:
        with alone(self.problem, seed):
            run = copy_of(self.run, self.problem)
            run = change(run) or run
            batches, wanted = len(run.data), self.steps * batches_a_step
            order = [i for _ in range(-(-wanted // batches)) for i in torch.randperm(batches).tolist()]
            for k in range(0, wanted, batches_a_step):
                chosen = [move(run.data[i], self.problem.device) for i in order[k : k + batches_a_step]]
                if not math.isfinite(step(run, *chosen)):
                    return math.inf
            return read(run)

    def _loss_over_all(self, run: TrainingRun) -> float:
        try:
            return Problem(
                run.model, run.loss_fn, run.data, loss=run.loss, mode=self.problem.mode, seed=self.seed
            ).loss()
        except LossNotFiniteError:
            return math.inf


def _as_given(given: Problem) -> Network:
    return Network.copy_of(given.model)


def _estimate(figures: Sequence[float], how: str, repeated: str) -> Estimate:
    """The middle one of several, and their range."""
    if len(figures) > 1:
        how += f", in {len(figures)} {repeated}"
    return Estimate(sorted(figures)[len(figures) // 2], min(figures), max(figures), how)
