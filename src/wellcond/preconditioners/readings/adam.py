"""torch.optim.Adam, AdamW, NAdam, RAdam, SparseAdam and Adamax: averaged momentum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wellcond.preconditioners.momentum import Momentum
from wellcond.preconditioners.reading import Flags, Group, Reading, Scalar, State, reads, step_number
from wellcond.preconditioners.rule import Columns, Rule


class AveragedMomentum(Reading):
    """m ← β₁m + (1−β₁)g, divided by 1−β₁ᵗ in step t."""

    def correction(self, group: Group, step: Scalar) -> Scalar:
        return 1 / (1 - group["betas"][0] ** step)

    def momentum(self, state: State, group: Group) -> Momentum:
        return Momentum.average(float(group["betas"][0]))

    def penalty_rate(self, group: Group, step: Scalar) -> Scalar:
        return group["lr"]  # an average has a gain of 1; the correction is that of m alone


class SecondMoment(AveragedMomentum):
    """v ← β₂v + (1−β₂)g², divided by 1−β₂ᵗ in step t."""

    def entries(self, group: Group | Flags) -> tuple[str, ...]:
        return ("exp_avg_sq",)

    def root(self, state: State, group: Group | Flags) -> Tensor:
        return state[self.entries(group)[0]].sqrt()

    def correct(self, group: Group, step: Scalar) -> tuple[Scalar, Scalar]:
        return self.factor(group, step), group["eps"]

    @staticmethod
    def factor(group: Group, step: Scalar) -> Scalar:
        """1/√(1−β₂ᵗ)."""
        return (1 - group["betas"][1] ** step) ** -0.5


@reads(torch.optim.Adam, torch.optim.AdamW)
class Adam(SecondMoment, Rule):
    """With amsgrad, the largest v so far instead of v."""

    def states(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def entries(self, group: Group | Flags) -> tuple[str, ...]:
        return ("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq",)

    def flags(self, group: Group) -> Flags:
        return {"amsgrad": group["amsgrad"]}

    def scalars(self, group: Group, step: Tensor) -> Columns:
        first, second = group["betas"]
        rate = group["lr"] * self.correction(group, step)
        return [rate, 1 - first, second, 1 - second, *self.correct(group, step)]

    def move(self, g: Tensor, state: dict[str, Tensor], s: Sequence[Any], flags: Flags) -> tuple[Tensor, Tensor | None]:
        rate, rest, second, second_rest, *numbers = s
        mean = state["exp_avg"].lerp_(g, rest)
        square = state["exp_avg_sq"].mul_(second).addcmul_(second_rest * g, g)
        if flags["amsgrad"]:
            largest = state["max_exp_avg_sq"]
            largest.copy_(torch.maximum(largest, square))
        squared: Any = self.squared(state, flags, *numbers)
        return (-rate * mean).mul_(squared), squared


@reads(torch.optim.SparseAdam)
class SparseAdam(SecondMoment):
    """ε is beside √v as it is, before the correction."""

    def correct(self, group: Group, step: Scalar) -> tuple[Scalar, Scalar]:
        factor = self.factor(group, step)
        return factor, group["eps"] * factor


@reads(torch.optim.NAdam)
class NAdam(SecondMoment):
    """The update is A·g + B·m of the step just taken; the limits of A and B where there was none."""

    translates = True

    def correction(self, group: Group, step: Scalar) -> Scalar:
        return 1.0  # it is in a and b

    def momentum(self, state: State, group: Group) -> Momentum:
        beta, decay = float(group["betas"][0]), group["momentum_decay"]
        step, product = (float(step_number(state)), float(state["mu_product"])) if state else (math.inf, 0.0)
        mu, following = (beta * (1 - 0.5 * 0.96 ** (t * decay)) if t < math.inf else beta for t in (step, step + 1))
        A, B = (1 - mu) / (1 - product), following / (1 - product * following)
        return Momentum(beta, 1 - beta, A, B)


@reads(torch.optim.RAdam)
class RAdam(SecondMoment):
    """Adaptive only where ρ_t, the length of the average that v is, is above 5."""

    translates = True

    def correct(self, group: Group, step: Scalar) -> tuple[Scalar, Scalar]:
        t, beta, eps = torch.as_tensor(step, dtype=torch.float64), group["betas"][1], group["eps"]
        limit = 2 / (1 - beta) - 1
        rho = limit - 2 * t * beta**t / (1 - beta**t)
        # 1/r_t, the rectification, is part of the factor; where the step was not adaptive 1/P² is 1.
        inverse_r = ((limit - 4) * (limit - 2) * rho / ((rho - 4) * (rho - 2) * limit)) ** 0.5
        factor = inverse_r * self.factor(group, t)
        return torch.where(rho > 5, factor, 0.0), torch.where(rho > 5, eps * factor, 1.0)

    def root_v(self, state: State, group: Group) -> Tensor | None:
        return self.root(state, group) * self.factor(group, step_number(state)) if state else None


@reads(torch.optim.Adamax)
class Adamax(AveragedMomentum):
    """The infinity norm of the gradients, ε inside it."""

    translates = True

    def entries(self, group: Group | Flags) -> tuple[str, ...]:
        return ("exp_inf",)

    def root(self, state: State, group: Group | Flags) -> Tensor:
        return state["exp_inf"].clone()

    def correct(self, group: Group, step: Scalar) -> tuple[Scalar, Scalar]:
        return 1.0, 0.0
