"""A few steps of the given optimizer on a copy, at the best of some learning rates, and what it then is as P."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wellcond.preconditioners import Diagonal, Preconditioner, Step, preconditioner_of, steps_of, unwrapped_optimizer
from wellcond.problem import LossNotFiniteError, Problem, check_depends

DECADES = 8
"""Learning rates are searched up to so many powers of ten on either side of the given one."""


@dataclass(frozen=True)
class WarmedUp:
    """Where a network is after some steps at the best rate.

    Attributes:
        factor: that rate over the given one.
        loss: there.
        losses: of each step's batch, before it.
        parameters: values, in the problem's order.
        P: called for what the gradient is preconditioned by there, in all, None for I; raises ValueError where that is
            no P.
        step: how it steps its first parameter.
    """

    factor: float
    loss: float
    losses: list[float]
    parameters: list[Tensor]
    P: Callable[[], Preconditioner | None]
    step: Step


class WarmUp:
    """Training of a changed network from where it is, again and again, by optimizers made like the given one.

    Dropout masks are those that a measurement has, one a batch, and no buffer moves: what is trained is the function
    that is measured.

    Args:
        problem: of the changed network; its parameters are moved while a run lasts.
        optimizer: the given one, over the given network's parameters.
        twins: id of a parameter of the given network → that of the changed one.
        P: where the optimizer runs in z = P⁻¹p (theory, section 5.4); None for z = p.
    """

    def __init__(
        self, problem: Problem, optimizer: Any, twins: dict[int, nn.Parameter], P: Preconditioner | None = None
    ):
        self.problem, self.optimizer, self.P = problem, unwrapped_optimizer(optimizer), P
        if any(group.get("maximize") for group in self.optimizer.param_groups):
            raise ValueError("the optimizer maximizes; give it the negative loss and maximize=False")
        if P is not None:
            self.P = P.over(problem.parameters, problem.names, problem.dtype)
        self.start = [p.detach().clone() for p in problem.parameters]
        place = {id(p): i for i, p in enumerate(problem.parameters)}
        groups = [[twins[id(p)] for p in group["params"]] for group in self.optimizer.param_groups]
        self.places = [[place[id(q)] for q in group if id(q) in place] for group in groups]
        known = {i for group in self.places for i in group}
        self.places[0] += [i for i in range(len(self.start)) if i not in known]  # γ, β: as the first group

    def best(self, steps: int, *, decades: int = 3, halves: bool = True) -> WarmedUp:
        """The run with the lowest loss: at powers of ten of the given rate, further while they help, then at halves.

        With no steps, where the network is, with the P that its gradient makes.

        Args:
            steps: of each run.
            decades: up to so many on either side of the given rate at first.
            halves: whether to look half a decade to either side of the best.

        Raises:
            ValueError: if the loss is finite at no rate.
        """
        runs: dict[int, WarmedUp | None] = {}  # half a decade each

        def run(k: int) -> float:
            if k not in runs:
                runs[k] = self.run(10 ** (k / 2), steps)
            found = runs[k]
            return math.inf if found is None else found.loss

        if not steps:
            found = self.run(0.0, len(self.problem.batches))
        else:
            best = min(range(-2 * decades, 2 * decades + 1, 2), key=run)
            while (
                abs(best) < 2 * DECADES
                and (following := min((best - 2, best + 2), key=run))
                and run(following) < run(best)
            ):
                best = following
            found = runs[min((best, best - 1, best + 1), key=run) if halves else best]
        if found is None:
            raise ValueError("the loss is finite at no learning rate; start from smaller weights, or scale the inputs")
        return found

    def move_to(self, parameters: list[Tensor]) -> None:
        """Put values into the network."""
        with torch.no_grad():
            for p, x in zip(self.problem.parameters, parameters, strict=True):
                p.copy_(x)

    def run(self, factor: float, steps: int) -> WarmedUp | None:
        """Steps at the given rate times a factor; None where the loss does not stay finite."""
        problem = self.problem
        start = self.start if self.P is None else self.P.invert([x.to(problem.dtype) for x in self.start])
        z = [nn.Parameter(x.clone()) for x in start]
        optimizer = like(self.optimizer, [[z[i] for i in group] for group in self.places], factor)
        losses: list[float] = []
        try:
            with problem.evaluating():
                for k in range(steps):
                    loss = problem.batch_loss(k % len(problem.batches))
                    check_depends(loss)
                    losses.append(float(loss.detach()))
                    self._step(optimizer, z, torch.autograd.grad(loss, problem.leaves, allow_unused=True))
            return self.warmed(factor, losses, optimizer, lambda: self._whole(optimizer, z))
        except LossNotFiniteError:
            return None
        finally:
            self.move_to(self.start)

    def warmed(
        self, factor: float, losses: list[float], optimizer: Optimizer, P: Callable[[], Preconditioner | None]
    ) -> WarmedUp:
        """What a run came to, while the parameters are where it ended."""
        parameters = [p.detach().clone() for p in self.problem.parameters]
        return WarmedUp(factor, self.problem.loss(), losses, parameters, P, steps_of(optimizer)[0])

    def _whole(self, optimizer: Optimizer, z: list[nn.Parameter]) -> Preconditioner | None:
        """The given P times the optimizer's own."""
        P = preconditioner_of(optimizer)
        assert isinstance(P, Diagonal)
        if P.is_identity:
            return self.P
        scales = {id(x): s for x, s in zip(P.parameters, P.scales, strict=True)}
        own = Diagonal(self.problem.parameters, [scales[id(x)] for x in z], P.rounding)
        return own if self.P is None else self.P @ own

    def _step(self, optimizer: Optimizer, z: list[nn.Parameter], gradients: tuple[Tensor | None, ...]) -> None:
        parameters = self.problem.parameters
        if self.P is not None:
            whole = [torch.zeros_like(x) if g is None else g for x, g in zip(z, gradients, strict=True)]
            gradients = tuple(self.P.adjoint(whole))
        before = [x.detach().clone() for x in z]
        for x, g in zip(z, gradients, strict=True):
            x.grad = None if g is None else g.to(x.dtype)
        optimizer.step()
        if self.P is None:
            self.move_to([x.detach() for x in z])
            return
        moved = self.P.apply([x.detach() - y for x, y in zip(z, before, strict=True)])
        self.move_to([p.detach() + d for p, d in zip(parameters, moved, strict=True)])


def like(optimizer: Optimizer, groups: list[list[nn.Parameter]], factor: float) -> Optimizer:
    """An optimizer of the same class and options over other parameters, without state, its rates times a factor."""
    made = []
    for group, parameters in zip(optimizer.param_groups, groups, strict=True):
        if parameters:
            options = {**group, "params": parameters, "lr": float(group["lr"]) * factor}
            made.append(options if factor else {**options, "weight_decay": 0.0} if "weight_decay" in group else options)
    accepted = inspect.signature(type(optimizer)).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in accepted}
    return type(optimizer)(made, **defaults)
