"""Remedies tried on a copy of the training run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wellcond.examination.run import TrainingRun
from wellcond.linalg import Estimate
from wellcond.preconditioners.reading import unwrapped_optimizer
from wellcond.problem import LossNotFiniteError, Problem, random_state
from wellcond.problem.batches import move
from wellcond.what_if import Variant, what_if

Change = Callable[[TrainingRun], TrainingRun | None]
"""Puts a remedy into a copy of the training run, whose data are the batches; or gives another run."""

REPEATS = 3
"""Orders of the batches that a trial is repeated in, where there are several: their spread is its error."""


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
    `notes` says why.

    Args:
        run: the training run.
        problem: of it, with the batches.
        steps: of each trial, one a batch; with 0 nothing is tried.
        seed: of dropout and of the order of the batches.
    """

    def __init__(self, run: TrainingRun, problem: Problem, steps: int, seed: int = 0):
        self.run, self.problem, self.steps, self.seed = run, problem, steps, seed
        self.notes: list[str] = []
        self._as_it_is: list[float] | None = None
        self._variants: dict[str, Variant] = {}

    @property
    def possible(self) -> bool:
        """Whether anything is tried."""
        return self.steps > 0 and self.run.optimizer is not None

    def effect(self, change: Change, figure: str = "") -> Effect | None:
        """The loss over all data after the steps, as it is and with a change; None where it could not be tried."""
        if not self.possible:
            return None
        try:
            if self._as_it_is is None:
                self._as_it_is = self._losses(lambda run: run)
            changed = self._losses(change)
        except Exception as error:  # whatever the user's code raises when it is copied, or stepped in another way
            self._note("A remedy could not be tried on a copy of the run", error)
            return None
        figure = figure or f"loss after {self.steps} more steps"
        return Effect(figure, self._estimate(self._as_it_is), self._estimate(changed))

    def normalized(self, change: str) -> Effect | None:
        """The same for a change that `wellcond.what_if` knows: each from new state of the optimizer and at the best of
        some learning rates, after its warm-up."""
        if not self.possible:
            return None
        try:
            for name in ("as it is", change):
                if name not in self._variants:
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
        except Exception as error:  # as above
            self._note(f"“{change}” could not be tried", error)
            return None
        how = f"{self.steps} steps from new state of the optimizer, at the best of some learning rates"
        before, after = (
            Estimate(v.loss, v.loss, v.loss, how) for v in (self._variants["as it is"], self._variants[change])
        )
        return Effect(f"loss after {self.steps} steps at the best learning rate", before, after)

    def _losses(self, change: Change) -> list[float]:
        """After the steps, once an order of the batches."""
        repeats = REPEATS if len(self.problem.batches) > 1 else 1
        return [self._loss(change, self.seed + k) for k in range(repeats)]

    def _loss(self, change: Change, seed: int) -> float:
        with random_state(seed, self.problem.device):
            run = self._copy()
            run = change(run) or run
            batches = len(run.data)
            order = [i for _ in range(-(-self.steps // batches)) for i in torch.randperm(batches).tolist()]
            for i in order[: self.steps]:
                if not step(run, move(run.data[i], self.problem.device)):
                    return math.inf
            try:
                return Problem(
                    run.model, run.loss_fn, run.data, loss=run.loss, mode=self.problem.mode, seed=self.seed
                ).loss()
            except LossNotFiniteError:
                return math.inf

    def _copy(self) -> TrainingRun:
        optimizer = unwrapped_optimizer(self.run.optimizer)
        shared: tuple[Any, ...] = (self.problem.model, optimizer)
        if isinstance(self.run.loss_fn, nn.Module):
            shared += (self.run.loss_fn,)
        model, optimizer, *loss_fn = copy.deepcopy(shared)
        model.train(self.problem.mode == "train")
        return TrainingRun(
            model, loss_fn[0] if loss_fn else self.run.loss_fn, self.problem.batches, optimizer, self.run.loss
        )

    def _estimate(self, losses: Sequence[float]) -> Estimate:
        how = f"{self.steps} steps on a copy of the run"
        if len(losses) > 1:
            how += f", in {len(losses)} orders of its batches"
        return Estimate(sorted(losses)[len(losses) // 2], min(losses), max(losses), how)

    def _note(self, what: str, error: Exception) -> None:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        note = f"{what}: {words}."
        if note not in self.notes:
            self.notes.append(note)


def step(run: TrainingRun, batch: Any) -> bool:
    """One step of plain training on a batch; whether the loss was finite.

    Raises:
        RuntimeError: if the loss does not depend on the run's model.
    """
    assert run.optimizer is not None
    run.optimizer.zero_grad()
    loss = loss_of(run, batch)
    if not math.isfinite(float(loss.detach())):
        return False
    loss.backward()
    if all(p.grad is None for p in run.model.parameters()):
        raise RuntimeError(
            "the loss of a copy of the model does not depend on the copy; let it use the model it is given"
        )
    run.optimizer.step()
    return True


def loss_of(run: TrainingRun, batch: Any) -> Tensor:
    """As the training loop would compute it."""
    if run.loss is not None:
        return run.loss(run.model, batch)
    assert run.loss_fn is not None
    inputs, target = batch
    return run.loss_fn(run.model(inputs), target)
