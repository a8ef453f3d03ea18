"""How to read P off an optimizer: what one optimizer's entry holds, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.preconditioners.momentum import Momentum

Scalar = float | Tensor
State = Mapping[str, Any]
Group = Mapping[str, Any]
Flags = Mapping[str, bool]


class NotReadableError(TypeError):
    """Raised for an optimizer of which no preconditioner is known."""


class Reading:
    """How to read one kind of optimizer; this one is plain gradient descent with P = I.

    P_ii² = 1/(root·factor + ε): `root` is elementwise in the state and never needs the step number, `correct` gives
    factor and ε. `group` is an entry of `param_groups`, `state` that of one parameter, with its gradient and itself as
    "grad" and "param" where `needs_gradient`. `step` counts from 1: a number, or a tensor where it lives on a GPU, so
    that nothing waits for it, or where it is one for each of n parameters.

    Attributes:
        needs_a_step: whether P exists only after a step.
        needs_gradient: whether `root` needs the gradient of the last step.
        translates: whether a step is p ← (1 − lr·τ)p + d with a d that does not depend on p but by a coupled decay.
    """

    needs_a_step = True
    needs_gradient = False
    translates = False

    def flags(self, group: Group) -> Flags | None:
        """What `root` asks of the group, as yes or no; None where that is not known."""
        return {}

    def entries(self, group: Group | Flags) -> tuple[str, ...]:
        """Entries of `state`, tensors of the parameter's shape, that `root` uses."""
        return ()

    def root(self, state: State, group: Group | Flags) -> Tensor | None:
        """√v or what plays its part, of the parameter's shape, in new memory; None for P = I."""
        return None

    def correct(self, group: Group, step: Scalar) -> tuple[Scalar, Scalar]:
        """(factor, ε)."""
        return 1.0, group.get("eps", 0.0)

    def root_v(self, state: State, group: Group) -> Tensor | None:
        """√v as the step corrected it; None where there is none."""
        root = self.root(state, group) if state else None
        return None if root is None else root * self.correct(group, step_number(state))[0]

    def squared_scale(self, state: State, group: Group) -> Tensor | None:
        """P_ii², of the parameter's shape; None for 1."""
        return self.squared(state, group, *self.correct(group, step_number(state))) if state else None

    def squared(self, state: State, group: Group | Flags, factor: Scalar, eps: Scalar) -> Tensor | None:
        """The same, of what `correct` gave."""
        root = self.root(state, group)
        return None if root is None else root.mul_(factor).add_(eps).reciprocal_()

    def stepped(self, state: State) -> bool:
        """Whether P is there, after a step that may have been skipped. A count on a GPU is taken as positive: nothing
        waits for it."""
        if not self.needs_a_step:
            return True
        step = step_number({"step": 1, **state}) if state else 0.0
        return isinstance(step, Tensor) or step > 0

    def correction(self, group: Group, step: Scalar) -> Scalar:
        """α over the group's lr in the last step: the correction of early steps, or a decay."""
        return 1.0

    def momentum(self, state: State, group: Group) -> Momentum:
        """What becomes of the gradient beside scaling it; in the limit of many steps where the state is empty."""
        return Momentum()

    def decay(self, state: State, group: Group) -> tuple[float, float]:
        """(coupled, decoupled) weight decay: τ whose τp is added to the gradient, and τ for which p loses lr·τp."""
        tau = float(group.get("weight_decay", 0.0))
        return (0.0, tau) if group.get("decoupled_weight_decay") else (tau, 0.0)

    def penalty_rate(self, group: Group, step: Scalar) -> Scalar:
        """α_pen, the step of a penalty (theory, section 4.7)."""
        return group["lr"] * self.momentum({}, group).gain


class _Function(Reading):
    """A reading from P_ii² as a plain function of state and group."""

    def __init__(self, squared_scale: Callable[[State, Group], Tensor]):
        self._squared_scale = squared_scale

    def flags(self, group: Group) -> None:
        return None

    def root(self, state: State, group: Group | Flags) -> Tensor:
        return self._squared_scale(state, group).reciprocal()

    def correct(self, group: Group, step: Scalar) -> tuple[Scalar, Scalar]:
        return 1.0, 0.0

    def squared_scale(self, state: State, group: Group) -> Tensor:
        try:
            return self._squared_scale(state, group)
        except KeyError as error:
            raise KeyError(
                f"the reading {self._squared_scale.__qualname__} uses {error}, which is neither in the optimizer's "
                f"state ({', '.join(map(str, state))}) nor in its group ({', '.join(map(str, group))})"
            ) from None

    def stepped(self, state: State) -> bool:
        return True  # it may keep no state at all

    def decay(self, state: State, group: Group) -> tuple[float, float]:
        return super().decay(state, group) if "decoupled_weight_decay" in group else (0.0, 0.0)  # which, nobody said


_READINGS: dict[type[Optimizer], Reading] = {}
_REFUSED = {
    "Rprop": "its step depends on the sign of the current gradient alone",
    "Lion": "its step depends on the sign of the momentum alone",
    "Muon": "its step is a function of the current momentum alone",
    "LBFGS": "its preconditioner is not diagonal and not stored",
    "Adafactor": "its factored second moment is not supported yet",
}
_Kind = TypeVar("_Kind", bound=type[Reading] | Callable[[State, Group], Tensor])


def reads(*optimizers: type[Optimizer]) -> Callable[[_Kind], _Kind]:
    """Decorator: this is how to read these optimizer classes (exactly these: a subclass may step differently).

    It takes a function of one parameter's state and group that gives P_ii² as a tensor of the parameter's shape, or,
    where the step is not lr·P²·gradient with the stability bound 2, a `Reading` class. The function may be called with
    the state in another precision; its "step" is a number or a 0-dim tensor.

    >>> import torch
    >>> class Mine(torch.optim.RMSprop):
    ...     "An optimizer of one's own."
    >>> @reads(Mine)
    ... def squared_scale(state, group):
    ...     return 1 / (state["square_avg"].sqrt() + group["eps"])
    """

    if not optimizers or not all(isinstance(o, type) and issubclass(o, Optimizer) for o in optimizers):
        raise TypeError("reads takes the optimizer classes that the function is for: @reads(MyOptimizer)")

    def register(reading: _Kind) -> _Kind:
        made = reading() if isinstance(reading, type) else _Function(reading)
        _READINGS.update(dict.fromkeys(optimizers, made))
        return reading

    return register


def unwrapped_optimizer(optimizer: Any) -> Optimizer:
    """The torch optimizer itself, taken out of a wrapper that keeps it as `.optimizer`.

    Raises:
        TypeError: if there is none.
    """
    while type(optimizer) not in _READINGS and isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"the optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer")
    return optimizer


def reading_for(optimizer: Optimizer | type[Optimizer]) -> Reading:
    """How to read this optimizer (or one of this class), which may not have taken a step yet.

    Raises:
        NotReadableError: for an optimizer that is no (supported) preconditioner, naming those that are.
    """
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    reading = _READINGS.get(kind)
    if reading is None:
        why = _REFUSED.get(
            kind.__name__, "nothing is known about its preconditioner (register it: wellcond.preconditioners.reads)"
        )
        known = ", ".join(supported())
        raise NotReadableError(f"{kind.__name__} can't be read as a preconditioner: {why}; supported are {known}")
    return reading


def known_reading(optimizer: Optimizer) -> Reading | None:
    """How to read this optimizer, if that is known."""
    return _READINGS.get(type(optimizer))


def supported() -> list[str]:
    """Names of the optimizers that can be read."""
    return sorted({cls.__name__ for cls in _READINGS})


def step_number(state: State) -> Scalar:
    """Steps taken: a number, or a 0-dim float64 tensor where the optimizer counts on a GPU; 0 where none is kept."""
    step = state.get("step", 0)
    if isinstance(step, Tensor):
        return float(step) if step.device.type == "cpu" else step.double()
    return float(step)


def step_numbers(states: Sequence[State]) -> Tensor:
    """The same of many states, (n,) in float64, on the device that counts them."""
    steps = [step_number(state) for state in states]
    device = next((step.device for step in steps if isinstance(step, Tensor)), None)
    if device is None:
        return torch.tensor(steps, dtype=torch.float64)
    return torch.stack([torch.as_tensor(step, dtype=torch.float64, device=device) for step in steps])
