"""Training of a changed network by optimizers made like the given one, and the search for a learning rate."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.preconditioners import (
    BatchNormPreconditioner,
    Preconditioner,
    Step,
    preconditioner_of,
    steps_of,
    unwrapped_optimizer,
)
from wellcond.problem import LossNotFiniteError, Problem, check_depends, move
from wellcond.steps import precondition
from wellcond.trials.copy_of_run import alone, run_of, step
from wellcond.trials.network import Network

DECADES = 8
"""Powers of ten on either side of the given learning rate that are searched."""


@dataclass(frozen=True)
class Trained:
    """A copy of a network after some steps.

    Attributes:
        problem: of the copy, its parameters where the steps ended.
        loss: there.
        losses: of each step's batch, before it.
        factor: learning rate of the steps over the given one.
        optimizer: that took them.
        step: how it steps its first parameter.
        given: where its gradient was taken in z = P⁻¹p (theory, section 5.4), that P; None for z = p.
    """

    problem: Problem
    loss: float
    losses: list[float]
    factor: float
    optimizer: Optimizer
    step: Step
    given: Preconditioner | None = None

    def P(self) -> Preconditioner | None:
        """What the gradient is preconditioned by there, in all; None for I.

        Raises:
            ValueError: where that is no P.
        """
        own = preconditioner_of(self.optimizer)
        if own.is_identity:
            return self.given
        return own if self.given is None else self.given @ own


class Training:
    """Trains copies of one changed network from where it is; each run has a new optimizer, without state.

    Args:
        network: the changed network.
        given: the problem of the given one.
        optimizer: the given one, over the given network's parameters.

    Raises:
        TypeError, ValueError: for what is no optimizer, or one that maximizes.
    """

    def __init__(self, network: Network, given: Problem, optimizer: Any):
        self.network, self.given, self.optimizer = network, given, unwrapped_optimizer(optimizer)
        if any(group.get("maximize") for group in self.optimizer.param_groups):
            raise ValueError("the optimizer maximizes; give it the negative loss and maximize=False")

    def best(self, steps: int, *, decades: int = 3, further: bool = True, halves: bool = True) -> Trained:
        """The run with the lowest loss: at powers of ten of the given rate, further while they help, then at halves.

        Args:
            steps: of each run, at least one.
            decades: on either side of the given rate at first.
            further: whether to look beyond them while that helps.
            halves: whether to look half a decade to either side of the best.

        Raises:
            ValueError: if the loss is finite at no rate.
        """
        losses: dict[int, float] = {}  # by half decades
        lowest: Trained | None = None

        def loss(k: int) -> float:
            nonlocal lowest
            if k not in losses:
                found = self.run(10 ** (k / 2), steps)
                losses[k] = math.inf if found is None else found.loss
                if found is not None and (lowest is None or found.loss < lowest.loss):
                    lowest = found
            return losses[k]

        at = min(range(-2 * decades, 2 * decades + 1, 2), key=loss)
        while further and abs(at) < 2 * DECADES and loss(near := min((at - 2, at + 2), key=loss)) < loss(at):
            at = near
        for near in (at - 1, at + 1) if halves else ():
            loss(near)
        return _finite(lowest)

    def start(self) -> Trained:
        """Where the network is, with the P that its gradients make there: a step of no length on each batch."""
        return _finite(self.run(0.0, len(self.given.batches)))

    def run(self, factor: float, steps: int) -> Trained | None:
        """Steps at the given rate times a factor; None where the loss does not stay finite."""
        network = copy.deepcopy(self.network)
        problem = network.problem(self.given)
        P = None
        if network.P is not None and not factor:
            P = network.P.over(problem.parameters, problem.names)
            network.model.to(problem.dtype)  # z has the dtype of the measurement
        optimizer = self._optimizer(network, problem, factor)
        by_precondition = network.P is not None and factor > 0
        try:
            if by_precondition:
                losses = _preconditioned_steps(problem, optimizer, steps)
            else:
                losses = _measured_steps(problem, optimizer, P, steps)
            return Trained(problem, problem.loss(), losses, factor, optimizer, steps_of(optimizer)[0], P)
        except LossNotFiniteError:
            return None

    def _optimizer(self, network: Network, problem: Problem, factor: float) -> Optimizer:
        """One of the same class and options, its rates times a factor; new parameters are in its first group."""
        given = self.optimizer.param_groups
        home = {id(network.twins[id(p)]): i for i, group in enumerate(given) for p in group["params"]}
        made = []
        for i, group in enumerate(given):
            parameters = [p for p in problem.parameters if home.get(id(p), 0) == i]
            decay = {"weight_decay": 0.0} if "weight_decay" in group and not factor else {}
            if parameters:
                made.append({**group, **decay, "params": parameters, "lr": float(group["lr"]) * factor})
        accepted = inspect.signature(type(self.optimizer)).parameters
        defaults = {name: value for name, value in self.optimizer.defaults.items() if name in accepted}
        return type(self.optimizer)(made, **defaults)


def _measured_steps(problem: Problem, optimizer: Optimizer, P: Preconditioner | None, steps: int) -> list[float]:
    """Steps on the function that is measured: dropout masks are fixed, one per batch, and no buffer moves."""
    losses = []
    with problem.evaluating():
        for k in range(steps):
            loss = problem.batch_loss(k % len(problem.batches))
            check_depends(loss)
            losses.append(float(loss.detach()))
            gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, problem.leaves, allow_unused=True)
            if P is not None:
                pairs = zip(problem.parameters, gradients, strict=True)
                gradients = P.adjoint([torch.zeros_like(p) if g is None else g for p, g in pairs])
            for p, g in zip(problem.parameters, gradients, strict=True):
                p.grad = None if g is None else g.to(p.dtype)
            optimizer.step()
    return losses


def _preconditioned_steps(problem: Problem, optimizer: Optimizer, steps: int) -> list[float]:
    """Steps under `precondition(optimizer, BatchNormPreconditioner(model))`, from statistics 0 and 1.

    They are steps of plain training, since its statistics don't follow what a problem evaluates.
    """
    P = BatchNormPreconditioner(problem.model)
    precondition(optimizer, P)
    run, losses, buffers = run_of(problem, optimizer), [], [b.clone() for b in problem.model.buffers()]
    with alone(problem, problem.seed):
        for k in range(steps):
            losses.append(step(run, move(problem.batches[k % len(problem.batches)], problem.device)))
            if not math.isfinite(losses[-1]):
                raise LossNotFiniteError(f"the loss is {losses[-1]} after {k} steps")
    P.remove()
    for b, before in zip(problem.model.buffers(), buffers, strict=True):  # the function that is measured keeps them
        b.copy_(before)
    return losses


def _finite(found: Trained | None) -> Trained:
    if found is None:
        raise ValueError("the loss is finite at no learning rate; start from smaller weights, or scale the inputs")
    return found
