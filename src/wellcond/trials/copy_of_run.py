"""Steps on a copy of a training run as the user's loop takes them: dropout draws, buffers move."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wellcond.preconditioners import clone, unwrapped_optimizer
from wellcond.problem import Isolation, Problem, TrainingRun, modules_of, move, random_state


def copy_of(run: TrainingRun, problem: Problem) -> TrainingRun:
    """The problem's run with a model, an optimizer and a loss module of its own; its data are the batches."""
    twins: dict[int, Any] = {}
    model = copy.deepcopy(problem.model, twins)
    model.train(problem.mode == "train")
    optimizer = clone(unwrapped_optimizer(run.optimizer), twins, attached=True)
    return TrainingRun(model, _own(run.loss_fn, twins), problem.batches, optimizer, run.loss)


def run_of(problem: Problem, optimizer: Optimizer | None = None) -> TrainingRun:
    """Training of a problem's model, which is a copy, by its loss, with a loss module of its own."""
    if not problem.model.training:
        problem.model.train()
    return TrainingRun(problem.model, _own(problem.loss_fn, {}), problem.batches, optimizer, problem.whole_loss)


def _own(loss_fn: Any, twins: dict[int, Any]) -> Any:
    return copy.deepcopy(loss_fn, twins) if isinstance(loss_fn, nn.Module) else loss_fn


@contextlib.contextmanager
def alone(problem: Problem, seed: int) -> Iterator[None]:
    """Inside, a copy trains from this random state, beside stand-ins for the networks that the problem's loss uses."""
    beside = Isolation([], [], "train", None, modules_of(problem.loss_fn, problem.whole_loss))
    with random_state(seed, problem.device), torch.enable_grad(), contextlib.ExitStack() as stack:
        if beside.training:
            stack.enter_context(beside.entered(problem.device))
            beside.renew({})
        yield


def step(run: TrainingRun, *batches: Any) -> float:
    """One step on the mean gradient of some batches; their mean loss before it. Where that is not finite there is none.

    Raises:
        RuntimeError: if the loss does not depend on the run's model.
    """
    assert run.optimizer is not None
    run.optimizer.zero_grad()
    mean = 0.0
    for batch in batches:
        share = loss_of(run, batch) / len(batches)
        mean += float(share.detach())
        if not math.isfinite(mean):
            return mean
        if share.requires_grad:
            share.backward()
    if all(p.grad is None for p in run.model.parameters()):
        raise RuntimeError(
            "the loss of a copy of the model does not depend on the copy; let it use the model it is given"
        )
    run.optimizer.step()
    return mean


def loss_of(run: TrainingRun, batch: Any) -> Tensor:
    """The loss of a batch as the training loop would compute it."""
    if run.loss is not None:
        return run.loss(run.model, batch)
    assert run.loss_fn is not None
    inputs, target = batch
    return run.loss_fn(run.model(inputs), target)


@dataclass(frozen=True)
class TensorStep:
    """What one step of the optimizer did to one tensor.

    Attributes:
        name: of the parameter.
        norm, moved: ‖p‖ before the step and ‖Δp‖.
        pulled: coordinates with a gradient.
        lost: those of them that are bit for bit what they were: the step was rounded away.
    """

    name: str
    norm: float
    moved: float
    pulled: int
    lost: int


def first_step(run: TrainingRun, batch: Any, problem: Problem) -> list[TensorStep]:
    """One step of a copy of the problem's run, tensor by tensor; empty where the loss is not finite."""
    parameters = dict(run.model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in problem.names}
    if not math.isfinite(step(run, move(batch, problem.device))):
        return []
    found = []
    for name, p in before.items():
        after, gradient = parameters[name].detach(), parameters[name].grad
        pulled = torch.zeros_like(p, dtype=torch.bool) if gradient is None else gradient != 0
        moved = (after.double() - p.double()).norm()
        lost = int((pulled & (after == p)).sum())
        found.append(TensorStep(name, float(p.double().norm()), float(moved), int(pulled.sum()), lost))
    return found
