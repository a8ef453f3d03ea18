"""torch.optim.RMSprop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wellcond.preconditioners.momentum import Momentum
from wellcond.preconditioners.reading import Flags, Group, State, reads
from wellcond.preconditioners.rule import Columns, Rule


@reads(torch.optim.RMSprop)
class RMSprop(Rule):
    """v ← ρv + (1−ρ)g², less the square of the mean gradient if centered; momentum is of the scaled gradient."""

    def states(self, group: Group) -> tuple[str, ...]:
        return (*self.entries(group), "momentum_buffer") if group["momentum"] > 0 else self.entries(group)

    def entries(self, group: Group | Flags) -> tuple[str, ...]:
        return ("square_avg", "grad_avg") if group["centered"] else ("square_avg",)

    def flags(self, group: Group) -> Flags:
        return {"centered": group["centered"], "momentum": group["momentum"] > 0}

    def root(self, state: State, group: Group | Flags) -> Tensor:
        if group["centered"]:
            return (state["square_avg"] - state["grad_avg"].square()).sqrt()
        return state["square_avg"].sqrt()

    def momentum(self, state: State, group: Group) -> Momentum:
        return Momentum.heavy_ball(group["momentum"])

    def scalars(self, group: Group, step: Tensor) -> Columns:
        rho = group["alpha"]
        return [group["lr"], rho, 1 - rho, group["momentum"], *self.correct(group, step)]

    def move(self, g: Tensor, state: dict[str, Tensor], s: Sequence[Any], flags: Flags) -> tuple[Tensor, Tensor | None]:
        lr, rho, rest, beta, *numbers = s
        state["square_avg"].mul_(rho).addcmul_(rest * g, g)
        if flags["centered"]:
            state["grad_avg"].lerp_(g, rest)
        squared: Any = self.squared(state, flags, *numbers)
        scaled = g * squared
        if flags["momentum"]:
            scaled = state["momentum_buffer"].mul_(beta).add_(scaled)
        return -lr * scaled, squared
