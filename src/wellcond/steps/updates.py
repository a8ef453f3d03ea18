"""The steps of five of torch's optimizers as plain functions of tensors, and of each of them with a penalty inside.

They follow the order of torch's single-tensor loops. Every number is a scalar argument, so that a schedule or another
group compiles nothing anew; only yes or no is decided while they are traced.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wellcond.one_pass import Update, where_positive
from wellcond.penalties import L2, Penalty
from wellcond.steps import spaces

Numbers = Mapping[str, Any]  # of a parameter group: floats, or 0-dim tensors on a device
Flags = tuple[bool, ...]


class Rule(ABC):
    """How one of torch's optimizers steps."""

    @abstractmethod
    def states(self, group: Numbers) -> list[str]:
        """The entries of a parameter's state that have its shape."""

    def flags(self, group: Numbers) -> Flags:
        """What `update` decides while it is traced."""
        return ()

    def count(self, group: Numbers, params: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> Tensor:
        """Count the step: which one it is for every parameter, from 1, of shape (n,)."""
        steps = [state["step"] for state in states]
        if steps[0].device.type == "cpu":
            torch._foreach_add_(steps, torch.ones(()), alpha=1.0)  # a fourth of the time that a number takes
        else:
            torch._foreach_add_(steps, 1)
        return torch.stack([step.to(steps[0].device) for step in steps])

    @abstractmethod
    def scalars(self, group: Numbers, step: Tensor) -> list[float | Tensor]:
        """What `update` takes: a number, or one for each of n parameters, whose steps `step` counts from 1."""

    @abstractmethod
    def update(self, p: Tensor, g: Tensor, state: Sequence[Tensor], s: Sequence[Any], *flags: bool) -> Tensor | None:
        """Step p and its state in place, and leave g; return the P² of this step, None for P = I."""


class SGD(Rule):
    """torch.optim.SGD."""

    def states(self, group: Numbers) -> list[str]:
        return ["momentum_buffer"] if group["momentum"] else []

    def flags(self, group: Numbers) -> Flags:
        return bool(group["momentum"]), group["nesterov"]

    def count(self, group: Numbers, params: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> Tensor:
        # Torch does not count, and makes the buffer of the first gradient: here it is zero before.
        first = [state.get("momentum_buffer") is None for state in states]
        for p, state, new in zip(params, states, first, strict=True):
            if new and group["momentum"]:
                state["momentum_buffer"] = torch.zeros_like(p)
        return torch.tensor([1.0 if new else 2.0 for new in first])

    def scalars(self, group: Numbers, step: Tensor) -> list[float | Tensor]:
        gain = 1 - group["dampening"] * (step > 1).to(step.dtype)  # the first gradient is taken whole
        return [group["lr"], group["momentum"], gain, group["weight_decay"]]

    def update(self, p: Tensor, g: Tensor, state: Sequence[Tensor], s: Sequence[Any], *flags: bool) -> Tensor | None:
        (lr, momentum, gain, weight_decay), (has_momentum, nesterov) = s, flags
        g = g + weight_decay * p
        if has_momentum:
            buffer = state[0].mul_(momentum).add_(gain * g)
            g = g + momentum * buffer if nesterov else buffer
        p.sub_(lr * g)
        return None


class Adagrad(Rule):
    """torch.optim.Adagrad."""

    def states(self, group: Numbers) -> list[str]:
        return ["sum"]

    def scalars(self, group: Numbers, step: Tensor) -> list[float | Tensor]:
        return [group["lr"] / (1 + (step - 1) * group["lr_decay"]), group["eps"], group["weight_decay"]]

    def update(self, p: Tensor, g: Tensor, state: Sequence[Tensor], s: Sequence[Any], *flags: bool) -> Tensor | None:
        lr, eps, weight_decay = s
        g = g + weight_decay * p
        squared = _inverse(state[0].addcmul_(g, g).sqrt(), eps)
        p.addcmul_(-lr * g, squared)
        return squared


class RMSprop(Rule):
    """torch.optim.RMSprop."""

    def states(self, group: Numbers) -> list[str]:
        return ["square_avg"] + ["grad_avg"] * group["centered"] + ["momentum_buffer"] * (group["momentum"] > 0)

    def flags(self, group: Numbers) -> Flags:
        return group["centered"], group["momentum"] > 0

    def scalars(self, group: Numbers, step: Tensor) -> list[float | Tensor]:
        alpha = group["alpha"]
        return [group["lr"], alpha, 1 - alpha, group["eps"], group["momentum"], group["weight_decay"]]

    def update(self, p: Tensor, g: Tensor, state: Sequence[Tensor], s: Sequence[Any], *flags: bool) -> Tensor | None:
        lr, alpha, rest, eps, momentum, weight_decay = s
        centered, has_momentum = flags
        g = g + weight_decay * p
        square, *others = state
        square.mul_(alpha).addcmul_(rest * g, g)
        if centered:
            mean = others[0].lerp_(g, rest)
            squared = _inverse((square - mean * mean).sqrt_(), eps)
        else:
            squared = _inverse(square.sqrt(), eps)
        if has_momentum:
            p.sub_(lr * others[-1].mul_(momentum).addcmul_(g, squared))
        else:
            p.addcmul_(-lr * g, squared)
        return squared


class Adam(Rule):
    """torch.optim.Adam and torch.optim.AdamW."""

    def states(self, group: Numbers) -> list[str]:
        return ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * group["amsgrad"]

    def flags(self, group: Numbers) -> Flags:
        return group["amsgrad"], group["decoupled_weight_decay"]

    def scalars(self, group: Numbers, step: Tensor) -> list[float | Tensor]:
        (first, second), lr, weight_decay = group["betas"], group["lr"], group["weight_decay"]
        rate, correction = lr / (1 - first**step), (1 - second**step) ** -0.5
        decay = 1 - lr * weight_decay if group["decoupled_weight_decay"] else weight_decay
        return [rate, 1 - first, second, 1 - second, correction, group["eps"], decay]

    def update(self, p: Tensor, g: Tensor, state: Sequence[Tensor], s: Sequence[Any], *flags: bool) -> Tensor | None:
        rate, rest, second, second_rest, correction, eps, decay = s
        amsgrad, decoupled = flags
        if decoupled:
            p.mul_(decay)
        else:
            g = g + decay * p
        mean = state[0].lerp_(g, rest)
        square = state[1].mul_(second).addcmul_(second_rest * g, g)
        if amsgrad:
            square = state[2].copy_(torch.maximum(state[2], square))
        squared = _inverse(square.sqrt().mul_(correction), eps)
        p.addcmul_(-rate * mean, squared)
        return squared


def whole_step(rule: Rule, flags: Flags, inside: tuple[Penalty, str, str] | None) -> Update:
    """The step with its penalty: of (p, *state, gradient) and (*scalars of the rule, α_pen, strength, held).

    A parameter that the penalty is not on goes through the same function, with held = 0: so one compiled kernel does
    them all, whatever the penalty.

    Args:
        rule: how the optimizer steps.
        flags: whether it maximizes, and those of the rule.
        inside: the penalty, its space and by what it is ("prox" or "gradient"), if there is one.
    """
    maximize, *rest = flags

    def update(tensors: Sequence[Tensor], s: Sequence[Any]) -> list[Tensor]:
        p, *state, g = tensors
        g = -g if maximize else g
        if inside is None:
            rule.update(p, g, state, s, *rest)
            return [p, *state]
        (R, space, via), (*scalars, rate, strength, held) = inside, s
        if R.strength is not None:
            R = R.with_strength(strength)
        late = via == "gradient" and space == "intrinsic" and not isinstance(R, L2)
        before = p.clone() if late else p
        if via == "gradient" and space == "original":
            g = where_positive(held, g + R.gradient(p), g)
        elif via == "gradient" and isinstance(R, L2):
            p.mul_(1 - rate * strength * held)
        elif via == "gradient" and not late:
            p = where_positive(held, p - rate * R.gradient(p), p)
        squared = rule.update(p, g, state, scalars, *rest)
        if via == "prox":
            p = where_positive(held, spaces.prox(R, space, p, rate, squared), p)
        elif late:
            p = where_positive(held, p - rate * spaces.move(R, space, before, squared), p)
        return [p, *state]

    return update


def _inverse(root: Tensor, eps: Any) -> Tensor:
    """1/(root + ε), in place."""
    return root.add_(eps).reciprocal_()
