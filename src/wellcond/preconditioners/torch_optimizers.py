"""The optimizers of torch.optim as preconditioners: theory, sections 2.3, 3.1 and 4.7, one small class each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wellcond.preconditioners.momentum import Momentum
from wellcond.preconditioners.reading import Group, Reading, Scalar, State, reads, step_number


@reads(torch.optim.SGD)
class _SGD(Reading):
    needs_a_step = False

    def momentum(self, state: State, group: Group) -> Momentum:
        if group["nesterov"]:
            return Momentum.nesterov(group["momentum"])
        return Momentum.heavy_ball(group["momentum"], group["dampening"])

    def penalty_rate(self, group: Group, step: Scalar) -> Scalar:
        if not group["momentum"]:
            return group["lr"]
        return group["lr"] * (1 - group["dampening"]) / (1 - group["momentum"])


@reads(torch.optim.ASGD)
class _ASGD(Reading):
    def correction(self, state: State, group: Group) -> Scalar:
        return (1 + group["lambd"] * group["lr"] * (step_number(state) - 1)) ** -group["alpha"]

    def decay(self, state: State, group: Group) -> tuple[float, float]:
        rate = float(self.correction(state, group)) if state else 1.0
        return float(group["weight_decay"]), float(group["lambd"]) * rate

    def penalty_rate(self, group: Group, step: Scalar) -> Scalar:
        return group["lr"] * (1 + group["lambd"] * group["lr"] * (step - 1)) ** -group["alpha"]


@reads(torch.optim.Adagrad)
class _Adagrad(Reading):
    def entries(self, group: Group) -> tuple[str, ...]:
        return ("sum",)

    def root(self, state: State, group: Group) -> Tensor:
        return state["sum"].sqrt()

    def correction(self, state: State, group: Group) -> Scalar:
        return 1 / (1 + (step_number(state) - 1) * group["lr_decay"])

    def penalty_rate(self, group: Group, step: Scalar) -> Scalar:
        return group["lr"] / (1 + (step - 1) * group["lr_decay"])


@reads(torch.optim.RMSprop)
class _RMSprop(Reading):
    constants = ("centered",)

    def entries(self, group: Group) -> tuple[str, ...]:
        return ("square_avg", "grad_avg") if group["centered"] else ("square_avg",)

    def root(self, state: State, group: Group) -> Tensor:
        if group["centered"]:
            return (state["square_avg"] - state["grad_avg"].square()).sqrt()
        return state["square_avg"].sqrt()

    def momentum(self, state: State, group: Group) -> Momentum:
        return Momentum.heavy_ball(group["momentum"])

    def penalty_rate(self, group: Group, step: Scalar) -> Scalar:
        return group["lr"] / (1 - group["momentum"])


class _AveragedMomentum(Reading):
    """m = β₁m + (1−β₁)g, divided by 1−β₁ᵗ in step t."""

    def correction(self, state: State, group: Group) -> Scalar:
        return 1 / (1 - group["betas"][0] ** step_number(state))

    def momentum(self, state: State, group: Group) -> Momentum:
        return Momentum.average(float(group["betas"][0]))


class _SecondMoment(_AveragedMomentum):
    """v = β₂v + (1−β₂)g², divided by 1−β₂ᵗ in step t."""

    def entries(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg_sq",)

    def root(self, state: State, group: Group) -> Tensor:
        return state[self.entries(group)[0]].sqrt()

    def correct(self, state: State, group: Group) -> tuple[Scalar, Scalar]:
        return self.factor(state, group), group["eps"]

    @staticmethod
    def factor(state: State, group: Group) -> Scalar:
        """1/√(1−β₂ᵗ)."""
        return (1 - group["betas"][1] ** step_number(state)) ** -0.5


@reads(torch.optim.Adam, torch.optim.AdamW)
class _Adam(_SecondMoment):
    constants = ("amsgrad",)

    def entries(self, group: Group) -> tuple[str, ...]:
        return ("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq",)


@reads(torch.optim.SparseAdam)
class _SparseAdam(_SecondMoment):
    def correct(self, state: State, group: Group) -> tuple[Scalar, Scalar]:
        factor = self.factor(state, group)
        return factor, group["eps"] * factor


@reads(torch.optim.NAdam)
class _NAdam(_SecondMoment):
    def correction(self, state: State, group: Group) -> Scalar:
        return 1.0  # it is in a and b

    def momentum(self, state: State, group: Group) -> Momentum:
        # The update is A·g + B·m of the step just taken; the limits of A and B where there was none.
        beta, decay = float(group["betas"][0]), group["momentum_decay"]
        step, product = (float(step_number(state)), float(state["mu_product"])) if state else (math.inf, 0.0)
        mu, following = (beta * (1 - 0.5 * 0.96 ** (t * decay)) if t < math.inf else beta for t in (step, step + 1))
        A, B = (1 - mu) / (1 - product), following / (1 - product * following)
        return Momentum(beta, 1 - beta, A, B)


@reads(torch.optim.RAdam)
class _RAdam(_SecondMoment):
    def correct(self, state: State, group: Group) -> tuple[Scalar, Scalar]:
        t, beta, eps = step_number(state), group["betas"][1], group["eps"]
        limit = 2 / (1 - beta) - 1
        rho = limit - 2 * t * beta**t / (1 - beta**t)
        if isinstance(rho, Tensor):  # the step number is on a GPU, and nothing may wait for it
            factor = self._rectification(rho, limit) * self.factor(state, group)
            one = torch.ones_like(rho)
            return torch.where(rho > 5, factor, 0 * one), torch.where(rho > 5, eps * factor, one)
        if rho <= 5:  # the step was not adaptive: 1/P² = 1
            return 0.0, 1.0
        factor = self._rectification(rho, limit) * self.factor(state, group)
        return factor, eps * factor

    def root_v(self, state: State, group: Group) -> Tensor | None:
        if not state:
            return None
        return self.root(state, group) * self.factor(state, group)

    @staticmethod
    def _rectification(rho: Scalar, limit: Scalar) -> Scalar:
        """1/r_t."""
        return ((limit - 4) * (limit - 2) * rho / ((rho - 4) * (rho - 2) * limit)) ** 0.5


@reads(torch.optim.Adamax)
class _Adamax(_AveragedMomentum):
    def entries(self, group: Group) -> tuple[str, ...]:
        return ("exp_inf",)

    def root(self, state: State, group: Group) -> Tensor:
        return state["exp_inf"]

    def correct(self, state: State, group: Group) -> tuple[Scalar, Scalar]:
        return 1.0, 0.0  # ε is inside the infinity norm


@reads(torch.optim.Adadelta)
class _Adadelta(Reading):
    constants = None  # a scheduled lr would be one, under weight decay
    needs_gradient = True

    def root(self, state: State, group: Group) -> Tensor:
        """√(v+ε)/√(Δ+ε), with Δ as it was before the step, recovered from what the step made of it."""
        g = -state["grad"] if group["maximize"] else state["grad"]
        if not group["weight_decay"]:
            return self._root(state, group, g)
        # The decay was that of the parameter before the step: it is moved back by what this decay would have moved it.
        decayed = g + group["weight_decay"] * state["param"]
        before = state["param"] + group["lr"] * decayed / self._root(state, group, decayed)
        return self._root(state, group, g + group["weight_decay"] * before)

    @staticmethod
    def _root(state: State, group: Group, g: Tensor) -> Tensor:
        rho, eps = group["rho"], group["eps"]
        v = state["square_avg"] + eps
        w = g.square() / v
        delta = (state["acc_delta"] - (1 - rho) * eps * w) / (rho + (1 - rho) * w)
        return (v / (delta + eps)).sqrt()

    def correct(self, state: State, group: Group) -> tuple[Scalar, Scalar]:
        return 1.0, 0.0

    def root_v(self, state: State, group: Group) -> Tensor | None:
        return state["square_avg"].sqrt() if state else None
