"""torch.optim.SGD and ASGD: gradient descent, P = I."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wellcond.preconditioners.momentum import Momentum
from wellcond.preconditioners.reading import Flags, Group, Reading, Scalar, State, reads, step_number
from wellcond.preconditioners.rule import Columns, Rule


@reads(torch.optim.SGD)
class SGD(Rule):
    """m ← βm + (1−d)g, and the step α(g + βm) for Nesterov's, otherwise αm."""

    needs_a_step = False

    def momentum(self, state: State, group: Group) -> Momentum:
        if group["nesterov"]:
            return Momentum.nesterov(group["momentum"])
        return Momentum.heavy_ball(group["momentum"], group["dampening"])

    def states(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def flags(self, group: Group) -> Flags:
        return {"momentum": bool(group["momentum"]), "nesterov": group["nesterov"]}

    def count(self, params: Sequence[Tensor], states: Sequence[dict[str, Any]], group: Group) -> Tensor:
        # Torch does not count, and makes the buffer of the first gradient: here it is zero before.
        first = [state.get("momentum_buffer") is None for state in states]
        for p, state, new in zip(params, states, first, strict=True):
            if new and group["momentum"]:
                state["momentum_buffer"] = torch.zeros_like(p)
        return torch.tensor([1.0 if new else 2.0 for new in first], dtype=torch.float64)

    def scalars(self, group: Group, step: Tensor) -> Columns:
        gain = 1 - group["dampening"] * (step > 1).to(step.dtype)  # the first gradient is taken whole
        return [group["lr"], group["momentum"], gain]

    def move(self, g: Tensor, state: dict[str, Tensor], s: Sequence[Any], flags: Flags) -> tuple[Tensor, None]:
        lr, beta, gain = s
        if flags["momentum"]:
            buffer = state["momentum_buffer"].mul_(beta).add_(gain * g)
            g = g + beta * buffer if flags["nesterov"] else buffer
        return -lr * g, None


@reads(torch.optim.ASGD)
class ASGD(Reading):
    """A rate that falls, a decay of its own, and an average beside the steps."""

    def correction(self, group: Group, step: Scalar) -> Scalar:
        return (1 + group["lambd"] * group["lr"] * (step - 1)) ** -group["alpha"]

    def decay(self, state: State, group: Group) -> tuple[float, float]:
        rate = float(self.correction(group, step_number(state))) if state else 1.0
        return float(group["weight_decay"]), float(group["lambd"]) * rate

    def penalty_rate(self, group: Group, step: Scalar) -> Scalar:
        return group["lr"] * self.correction(group, step)
