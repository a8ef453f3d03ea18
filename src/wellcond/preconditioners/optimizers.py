"""What a live torch optimizer does to the gradient: its preconditioner, its rate and its stability bound.

One small class an optimizer. P is read in float64 from the optimizer's own state; after a step it is the P that this
step used (theory, section 3.1). Rates and bounds are those of theory section 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.preconditioners.preconditioner import Diagonal


class Reading:
    """How to read one kind of optimizer; this one is plain gradient descent with P = I.

    `group` is an entry of `param_groups`, `state` that of one parameter.
    """

    needs_a_step = True

    def root_v(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
        """√v, the root of the second moment as the step corrected it, in float64; None where there is none."""
        return None

    def squared_scale(self, p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """P_ii², in float64, of p's shape: 1/(√v + ε)."""
        root = self.root_v(state, group) if state else None
        if root is None:
            return torch.ones((), dtype=torch.float64, device=p.device).expand(p.shape)
        return 1 / (root + group["eps"])

    def correction(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> float:
        """α over the group's lr in the last step: the correction of early steps, or a decay."""
        return 1.0

    def bound(self, group: Mapping[str, Any]) -> float:
        """What α·λ_max(PᵀHP) must stay under for the iteration with P frozen to be stable."""
        return 2.0


_READINGS: dict[type[Optimizer], Reading] = {}
_Kind = TypeVar("_Kind", bound=type[Reading])


def reads(*optimizers: type[Optimizer]) -> Callable[[_Kind], _Kind]:
    """Class decorator: this `Reading` is the one for these optimizer classes."""

    def register(reading: _Kind) -> _Kind:
        _READINGS.update(dict.fromkeys(optimizers, reading()))
        return reading

    return register


@reads(torch.optim.SGD)
class _SGD(Reading):
    needs_a_step = False

    def bound(self, group: Mapping[str, Any]) -> float:
        beta, dampening = group["momentum"], group["dampening"]
        if group["nesterov"]:
            return (2 + 2 * beta) / (1 + 2 * beta)
        if not beta:
            return 2.0
        return (2 + 2 * beta) / (1 - dampening) if dampening < 1 else math.inf


@reads(torch.optim.Adagrad)
class _Adagrad(Reading):
    def root_v(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        return state["sum"].double().sqrt()

    def correction(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> float:
        return 1 / (1 + (float(state["step"]) - 1) * group["lr_decay"])


@reads(torch.optim.RMSprop)
class _RMSprop(Reading):
    def root_v(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        v = state["square_avg"].double()
        if group["centered"]:
            v = v - state["grad_avg"].double().square()
        return v.sqrt()

    def bound(self, group: Mapping[str, Any]) -> float:
        return 2 + 2 * group["momentum"]


@reads(torch.optim.Adam, torch.optim.AdamW)
class _Adam(Reading):
    def root_v(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double()
        return (v / (1 - float(group["betas"][1]) ** float(state["step"]))).sqrt()

    def correction(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> float:
        return 1 / (1 - float(group["betas"][0]) ** float(state["step"]))

    def bound(self, group: Mapping[str, Any]) -> float:
        beta = float(group["betas"][0])
        return (2 + 2 * beta) / (1 - beta)


def preconditioner_of(optimizer: Optimizer) -> Diagonal:
    """The diagonal preconditioner that the optimizer's last step used.

    A parameter that has had no step yet, because no gradient reached it, is taken as not preconditioned.

    Args:
        optimizer: torch.optim.SGD, Adagrad, RMSprop, Adam or AdamW, or a wrapper with an `optimizer` attribute.

    Raises:
        TypeError: for an optimizer that is no (supported) preconditioner, naming those that are.
        ValueError: for one that has not taken a step, or whose scales are not finite.

    Source: theory, section 3.1.

    >>> import torch
    >>> p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = torch.optim.RMSprop([p], lr=0.1)
    >>> (p**2).sum().backward()
    >>> optimizer.step()
    >>> [round(x, 3) for x in preconditioner_of(optimizer).scales[0].tolist()]
    [2.236, 1.581]
    """
    optimizer, reading = reading_of(optimizer)
    parameters: list[Tensor] = []
    scales: list[Tensor] = []
    rounding = 0.0
    with torch.no_grad():
        for p, state, group in _entries(optimizer):
            squared = reading.squared_scale(p, state, group)
            if not bool((torch.isfinite(squared) & (squared > 0)).all()):
                raise ValueError(
                    f"the {type(optimizer).__name__} state of a parameter of shape {tuple(p.shape)} gives a scale "
                    "that is not finite and positive: a NaN gradient came, a centered variance was rounded below "
                    "zero, or eps=0 where no gradient came; mend it and take a step"
                )
            parameters.append(p)
            scales.append(squared.sqrt())
            if reading.needs_a_step:
                # The step itself computed P in the parameter's dtype, in some four operations.
                rounding = max(rounding, 4 * torch.finfo(p.dtype).eps)
    return Diagonal(parameters, scales, rounding)


def reading_of(optimizer: Any) -> tuple[Optimizer, Reading]:
    """The torch optimizer itself, taken out of a wrapper that keeps it as `.optimizer`, and how to read it.

    Raises:
        TypeError, ValueError: as `preconditioner_of`.
    """
    while type(optimizer) not in _READINGS and isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"the optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer")
    name = type(optimizer).__name__
    reading = _READINGS.get(type(optimizer))
    if reading is None:
        why = _REFUSED.get(name, "nothing is known about its preconditioner")
        raise TypeError(f"{name} can't be read as a preconditioner: {why}; supported are {', '.join(supported())}")
    if reading.needs_a_step and not any(state for _, state, _ in _entries(optimizer)):
        raise ValueError(f"this {name} has no state yet, its preconditioner comes with it: take a step first")
    return optimizer, reading


_REFUSED = {
    "Rprop": "its step depends on the sign of the current gradient alone",
    "Lion": "its step depends on the sign of the momentum alone",
    "Muon": "its step is a function of the current momentum alone",
    "LBFGS": "its preconditioner is not diagonal and not stored",
    "Adafactor": "its factored second moment is not supported yet",
    **dict.fromkeys(("NAdam", "RAdam", "Adamax", "Adadelta", "SparseAdam", "ASGD"), "it is not supported yet"),
}


def supported() -> list[str]:
    """Names of the optimizers that can be read."""
    return sorted(cls.__name__ for cls in _READINGS)


def _entries(optimizer: Optimizer) -> list[tuple[Tensor, Mapping[str, Any], Mapping[str, Any]]]:
    """(parameter, state, group) of every parameter; the state is empty before its first step (Adagrad makes its
    accumulators when it is built)."""
    entries: list[tuple[Tensor, Mapping[str, Any], Mapping[str, Any]]] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            entries.append((p, state if float(state.get("step", 1 if state else 0)) > 0 else {}, group))
    return entries


@dataclass(frozen=True)
class Step:
    """How an optimizer steps one parameter.

    Attributes:
        parameter: which.
        learning_rate: lr of its group, as it stands.
        correction: α over lr in the last step.
        bound: of α·λ_max(PᵀHP), theory section 2.3.
        root_v: √v, of the parameter's shape; None where there is none (yet).
    """

    parameter: Tensor
    learning_rate: float
    correction: float
    bound: float
    root_v: Tensor | None


def steps_of(optimizer: Any) -> list[Step]:
    """How the optimizer steps each of its parameters, in its order."""
    optimizer, reading = reading_of(optimizer)
    return [
        Step(
            p,
            float(group["lr"]),
            reading.correction(state, group) if state else 1.0,
            reading.bound(group),
            reading.root_v(state, group) if state else None,
        )
        for p, state, group in _entries(optimizer)
    ]
