"""What a live torch optimizer does to the gradient: its preconditioner, its rate and its stability bound.

After a step, P is the P that this step used (theory, section 3.1). It is read in float64.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.hooks import as_optimizer_sees, carried_by, parameters_of
from wellcond.preconditioners.momentum import Momentum
from wellcond.preconditioners.preconditioner import DiagonalPreconditioner, Preconditioner
from wellcond.preconditioners.reading import Group, Reading, State, reading_for, step_number, unwrapped_optimizer


def preconditioner_of(optimizer: Optimizer) -> Preconditioner:
    """The preconditioner that the optimizer's last step used: a `DiagonalPreconditioner`, where no other was given.

    Under `reparameterize` or `precondition` with a given P it is P·P_optimizer, the whole change of variables. A
    parameter that has had no step yet, because no gradient reached it, is taken as not preconditioned.

    Args:
        optimizer: torch.optim.SGD, ASGD, Adagrad, Adadelta, RMSprop, Adam, AdamW, NAdam, RAdam, Adamax, SparseAdam, one
            registered with `reads`, or a wrapper with an `optimizer` attribute. Adadelta's P needs the gradient of its
            last step: read it before `zero_grad`.

    Raises:
        TypeError: for an optimizer that is no (supported) preconditioner, naming those that are.
        ValueError: for one that has not taken a step, or whose scales are not finite; under `precondition` with a P
            that is not diagonal and an optimizer that scales too, whose step is of no symmetric PPᵀ.

    Source: theory, section 3.1.

    >>> import torch
    >>> p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = torch.optim.RMSprop([p], lr=0.1)
    >>> (p**2).sum().backward()
    >>> optimizer.step()
    >>> [round(x, 3) for x in preconditioner_of(optimizer).scales[0].tolist()]
    [2.236, 1.581]
    """
    return with_given(optimizer, own_preconditioner_of(optimizer))


def with_given(optimizer: Any, own: DiagonalPreconditioner) -> Preconditioner:
    """P·own for the P that the optimizer was given by `reparameterize` or `precondition`, if it was."""
    optimizer, whole = unwrapped_optimizer(optimizer), own
    for carried in carried_by(optimizer):
        whole = carried.whole(optimizer, whole)
    return whole


def own_preconditioner_of(optimizer: Any) -> DiagonalPreconditioner:
    """What the optimizer itself does to the gradient that it is given, as `preconditioner_of`."""
    optimizer, reading = reading_of(optimizer)
    parameters: list[Tensor] = []
    scales: list[Tensor] = []
    rounding = 0.0
    with torch.no_grad():
        for p, state, group in _entries(optimizer, reading):
            squared = reading.squared_scale(state, group) if state or not reading.needs_a_step else None
            if squared is None:
                squared = torch.ones((), dtype=torch.float64, device=p.device).expand(p.shape)
            elif not bool((torch.isfinite(squared) & (squared > 0)).all()):
                raise ValueError(
                    f"the {type(optimizer).__name__} state of a parameter of shape {tuple(p.shape)} gives a scale "
                    "that is not finite and positive: a NaN gradient came, a centered variance was rounded below "
                    "zero, or eps=0 where no gradient came; fix it and take a step"
                )
            elif squared.shape != p.shape:
                raise ValueError(
                    f"the reading of {type(optimizer).__name__} gave scales of shape {tuple(squared.shape)} for a "
                    f"parameter of shape {tuple(p.shape)}"
                )
            parameters.append(p)
            scales.append(squared.double().sqrt())
            if reading.needs_a_step:
                # The step itself computed P in the parameter's dtype, in some four operations.
                rounding = max(rounding, 4 * torch.finfo(p.dtype).eps)
    return DiagonalPreconditioner(parameters, scales, rounding)


def reading_of(optimizer: Any) -> tuple[Optimizer, Reading]:
    """The torch optimizer itself, taken out of a wrapper, and how to read it now.

    Raises:
        TypeError, ValueError: as `preconditioner_of`.
    """
    optimizer = unwrapped_optimizer(optimizer)
    reading = reading_for(optimizer)
    if reading.needs_a_step and not any(_stepped(optimizer.state.get(p, {})) for p in parameters_of(optimizer)):
        raise ValueError(
            f"this {type(optimizer).__name__} has no state yet, its preconditioner comes with it: take a step first"
        )
    return optimizer, reading


def state_of(optimizer: Optimizer, p: Tensor, reading: Reading, dtype: torch.dtype) -> dict[str, Any]:
    """The state of a parameter, and what the reading needs beside it; floating numbers in another precision.

    Raises:
        ValueError: if the gradient of the last step is needed and gone.
    """
    state: dict[str, Any] = dict(optimizer.state.get(p, {}))
    if reading.needs_gradient:
        if p.grad is None:
            raise ValueError(
                f"the preconditioner of a parameter of shape {tuple(p.shape)} needs the gradient of the last step, "
                "which is gone; read it between step() and zero_grad()"
            )
        state |= {"grad": p.grad, "param": p.detach()}
    return {
        key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() and key != "step" else value
        for key, value in state.items()
    }


def _stepped(state: State) -> bool:
    """Adagrad makes its accumulators when it is built."""
    return bool(state) and float(step_number({"step": 1, **state})) > 0


def _entries(optimizer: Optimizer, reading: Reading) -> list[tuple[Tensor, State, Group]]:
    """(parameter, state in float64, group) of every parameter; the state is empty before its first step."""
    entries: list[tuple[Tensor, State, Group]] = []
    with as_optimizer_sees(optimizer) if reading.needs_gradient else contextlib.nullcontext():
        for group in optimizer.param_groups:
            for p in group["params"]:
                stepped = _stepped(optimizer.state.get(p, {}))
                entries.append((p, state_of(optimizer, p, reading, torch.float64) if stepped else {}, group))
    return entries


@dataclass(frozen=True)
class Step:
    """How an optimizer steps one parameter.

    Attributes:
        parameter: which.
        learning_rate: lr of its group, as it stands.
        correction: α over lr in the last step.
        momentum: what becomes of the gradient beside scaling it.
        coupled, decoupled: weight decay τ, in the gradient and beside it.
        root_v: √v, of the parameter's shape, float64; None where there is none (yet).
    """

    parameter: Tensor
    learning_rate: float
    correction: float
    momentum: Momentum
    coupled: float
    decoupled: float
    root_v: Tensor | None

    @property
    def bound(self) -> float:
        """What α·λ_max(PᵀHP) must stay under for the iteration with P frozen to be stable (theory, section 2.3)."""
        return self.momentum.bound


def steps_of(optimizer: Any) -> list[Step]:
    """How the optimizer steps each of its parameters, in its order."""
    optimizer, reading = reading_of(optimizer)
    return [
        Step(
            p,
            float(group["lr"]),
            float(reading.correction(group, step_number(state))) if state else 1.0,
            reading.momentum(state, group),
            *reading.decay(state, group),
            reading.root_v(state, group),
        )
        for p, state, group in _entries(optimizer, reading)
    ]
