"""A step of training, as the user's loop would take it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wellcond.problem import Problem, TrainingRun, move


def step(run: TrainingRun, *batches: Any) -> bool:
    """One step of plain training on the mean gradient of some batches; whether the loss was finite.

    Raises:
        RuntimeError: if the loss does not depend on the run's model.
    """
    assert run.optimizer is not None
    run.optimizer.zero_grad()
    for batch in batches:
        loss = loss_of(run, batch)
        if not math.isfinite(float(loss.detach())):
            return False
        if loss.requires_grad:
            (loss / len(batches)).backward()
    if all(p.grad is None for p in run.model.parameters()):
        raise RuntimeError(
            "the loss of a copy of the model does not depend on the copy; let it use the model it is given"
        )
    run.optimizer.step()
    return True


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
    if not step(run, move(batch, problem.device)):
        return []
    found = []
    for name, p in before.items():
        after, gradient = parameters[name].detach(), parameters[name].grad
        pulled = torch.zeros_like(p, dtype=torch.bool) if gradient is None else gradient != 0
        moved = (after.double() - p.double()).norm()
        lost = int((pulled & (after == p)).sum())
        found.append(TensorStep(name, float(p.double().norm()), float(moved), int(pulled.sum()), lost))
    return found


def loss_of(run: TrainingRun, batch: Any) -> Tensor:
    """As the training loop would compute it."""
    if run.loss is not None:
        return run.loss(run.model, batch)
    assert run.loss_fn is not None
    inputs, target = batch
    return run.loss_fn(run.model(inputs), target)
