"""The handle of a penalty that is in force on an optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.display import listed
from wellcond.hooks import Handle, as_optimizer_sees, carried_by, parameters_of
from wellcond.parameters import unflatten
from wellcond.penalties import Penalty, Sparsity, sparsity_of
from wellcond.preconditioners import reading_of, state_of
from wellcond.problem import Problem
from wellcond.steps import spaces
from wellcond.steps.penalty_application import Application
from wellcond.steps.proximal import Group


class Regularization(Handle):
    """A penalty in force on an optimizer: what `regularize` returns.

    Attributes:
        optimizer: the optimizer.
        penalty: R, its strength included.
        space: "intrinsic", "original" or "euclidean".
        via: "prox" or "gradient".
        strength: of the penalty; may be set at any time, so that it can be scheduled.
    """

    application: Application

    def __init__(self, optimizer: Optimizer, application: Application):
        super().__init__(optimizer, application)
        self.space, self.via = application.space, application.via

    def __eq__(self, other: object) -> bool:
        """Two handles of one penalty on one optimizer are the same."""
        return isinstance(other, Regularization) and other.application is self.application

    def __hash__(self) -> int:
        return hash(id(self.application))

    @property
    def penalty(self) -> Penalty:
        return self.application.penalty

    @property
    def strength(self) -> float:
        if self.penalty.strength is None:
            raise AttributeError(f"{self.penalty!r} is a constraint and has no strength")
        return self.penalty.strength

    @strength.setter
    def strength(self, strength: float) -> None:
        if isinstance(strength, Tensor):
            if strength.numel() != 1 or strength.is_complex():
                raise ValueError(f"strength is a tensor of shape {tuple(strength.shape)}; give a number")
            strength = strength.item()
        self.application.penalty = self.penalty.with_strength(strength)

    def parameters(self) -> list[Tensor]:
        """The parameters that the penalty is on, in the optimizer's order."""
        return list(self.application.selection.of(self.optimizer))

    def names(self) -> list[str]:
        """Their names, from the model or the optimizer where these know them."""
        return [self.application.selection.name(p, self.optimizer) for p in self.parameters()]

    @torch.no_grad()
    def value(self) -> Tensor:
        """R in the chosen space, summed over the parameters that it is on; float64, of shape (), on their device.

        Under `reparameterize` the parameters are z.

        Raises:
            ValueError: in intrinsic space before the first step, which makes P.
        """
        total = torch.zeros((), dtype=torch.float64)
        with as_optimizer_sees(self.optimizer):
            for p, group in self._selected():
                squared = self._squared(p, group) if self.space == "intrinsic" else None
                total = total.to(p.device) + spaces.value(self.penalty, self.space, p.double(), squared)
        return total

    def optimality(self, problem: Problem) -> float:
        """How far from stationary: the distance of −∇L to ∂R in the chosen space, over the penalized parameters.

        What else is in force on them counts too: smooth penalties and the optimizer's own weight decay into ∇L, other
        proximal steps into ∂R (and then it is their space). In euclidean space, whose steps minimize nothing that has a
        name, it is the norm of P²∇L + ∂R, which is zero where they rest.

        Args:
            problem: the loss and the data; it measures the gradient itself and leaves `.grad` alone.

        Raises:
            ValueError: before the first step, for a parameter that is not in the problem, or under `precondition`.
            TypeError: for an optimizer whose preconditioner is not known.
        """
        reading_of(self.optimizer)
        gradients = unflatten(problem.gradient(), problem.parameters)
        for carried in carried_by(self.optimizer):
            gradients = list(carried.seen(self.optimizer, problem.parameters, gradients))
        of = dict(zip(map(id, problem.parameters), gradients, strict=True))
        squares = 0.0
        with as_optimizer_sees(self.optimizer):
            for p, group in self._selected():
                if id(p) not in of:
                    raise ValueError(f"the problem does not have {self.application.selection.name(p, self.optimizer)}")
                g = of[id(p)].double() * (-1 if group.get("maximize") else 1)
                squares += float(self._residual(p, g, group).square().sum())
        return math.sqrt(squares)

    def sparsity(self) -> Sparsity:
        """Zeros, zero rows and zero columns of each parameter that the penalty is on."""
        return sparsity_of(zip(self.names(), self.parameters(), strict=True))

    def __repr__(self) -> str:
        of = {"intrinsic": "z = P⁻¹p", "original": "p", "euclidean": "p, P ignored"}[self.space]
        how = f"by a proximal step after each step of {type(self.optimizer).__name__}"
        if self.via == "gradient":
            added = self.space == "original"
            how = "by its gradient, " + ("added to .grad before" if added else "as a decay of its own beside")
            how += f" each step of {type(self.optimizer).__name__}"
        names, total = self.names(), len(parameters_of(self.optimizer))
        lines = [
            f"{self._removed}{self.penalty!r} on {of} ({self.space}), {how}",
            f"  on {len(names)} of {total} parameters: {listed(names, 4)}",
        ]
        lines += [f"  beside {other.penalty!r} ({other.space})" for other in self._others(self.parameters())]
        for i, group in enumerate(self.optimizer.param_groups):
            for key, strength, where in _decays(self.optimizer, group):
                what = "applied in its own way" if where == "unknown" else f"L2, {where} space"
                lines.append(f"  and the optimizer's own {key}={strength:g} in group {i}: {what}")
        return "\n".join(lines)

    def _selected(self) -> list[tuple[Tensor, Group]]:
        held = self.application.selection.holds
        return [(p, group) for group in self.optimizer.param_groups for p in group["params"] if held(p)]

    def _squared(self, p: Tensor, group: Group) -> Tensor | None:
        """P_ii² in float64; None for 1, also of a parameter that has not been stepped."""
        _, reading = reading_of(self.optimizer)
        state: Any = self.optimizer.state.get(p, {})
        if not state or not reading.stepped(state):
            return None
        return reading.squared_scale(state_of(self.optimizer, p, reading, torch.float64), group)

    def _residual(self, p: Tensor, g: Tensor, group: Group) -> Tensor:
        """The element of least norm of ∇L + ∂R in the space, everything in force included."""
        squared, x = self._squared(p, group), p.double()
        inverse = 1.0 if squared is None else 1 / squared
        others = self._others([p])
        proximal = [a for a in others if a.via == "prox"]
        added = [a for a in others if a.via == "gradient"]
        (added if self.via == "gradient" and proximal else proximal).append(self.application)
        for a in added:  # one in z, ∇R(z), is P⁻¹∇R(P⁻¹p) in p
            g = g + inverse * spaces.move(a.penalty, a.space, x, squared)
        for _, strength, where in _decays(self.optimizer, group):
            g = g + strength * x * (inverse if where == "intrinsic" else 1.0)
        x, g = spaces.coordinates(proximal[0].space, x, g, squared)
        for a in sorted(proximal, key=lambda a: a.order):  # a constraint last: the nearest, then its cone
            g = a.penalty.residual(x, g)
        return g

    def _others(self, parameters: list[Tensor]) -> list[Application]:
        """What else is in force on some of these parameters."""
        others = [a for a in carried_by(self.optimizer) if isinstance(a, Application) and a is not self.application]
        return [a for a in others if any(a.selection.holds(p) for p in parameters)]


def _decays(optimizer: Optimizer, group: Group) -> Iterator[tuple[str, float, str]]:
    """The optimizer's own weight decay: (its name, strength, space) of each that is in force in a group."""
    if decay := float(group.get("weight_decay") or 0):
        kind = type(optimizer)
        ours = kind.__module__.startswith(("torch.optim", "wellcond."))
        decoupled = group.get("decoupled_weight_decay", kind.__name__ in ("AdamW", "Muon", "Adafactor"))
        yield "weight_decay", decay, ("intrinsic" if decoupled else "original") if ours else "unknown"
    if isinstance(optimizer, torch.optim.ASGD) and group["lambd"]:
        yield "lambd", float(group["lambd"]), "intrinsic"
