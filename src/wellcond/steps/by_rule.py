"""The step of one of torch's optimizers taken by its rule, with something inside it, in one pass over memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wellcond.one_pass import Passes, Scalar, Update
from wellcond.preconditioners import Rule, known_reading

# What a weight decay makes of a point, in place, and of a gradient.
Decay = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# How far a gradient moves a point, and the P² of that step; it brings the state up to date.
Move = Callable[[Tensor], tuple[Tensor, Tensor | None]]
# (p, g, further tensors, numbers, decay, move) → the p after the step.
Around = Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Any], Decay, Move], Tensor]


def plain(p: Tensor, g: Tensor, tensors: Sequence[Tensor], s: Sequence[Any], decayed: Decay, move: Move) -> Tensor:
    """The step as it is."""
    p, g = decayed(p, g)
    return p.add_(move(g)[0])


class Inside:
    """What is inside a step, between the gradient and p; this one is nothing.

    Attributes:
        around: makes the step, and is traced: it may ask nothing of values, and it is kept for the life of the process.
        key: of `around`.
    """

    around: Around = staticmethod(plain)
    key: Hashable = None

    def takes(self, p: Tensor) -> bool:
        """Whether the step is of this parameter."""
        return True

    def tensors(self, p: Tensor) -> list[Tensor]:
        """Tensors of its shape that `around` needs."""
        return []

    def columns(self, rule: Rule, group: Mapping[str, Any], step: Tensor, params: Sequence[Tensor]) -> list[Scalar]:
        """Numbers that `around` needs, of all or of each of these parameters."""
        return []


def can_step_by_rule(optimizer: Optimizer, parameters: Iterable[Tensor]) -> bool:
    """Whether they are plain dense tensors, and a rule is known that does all that the optimizer does to them."""
    if not isinstance(known_reading(optimizer), Rule) or any(g.get("capturable") for g in optimizer.param_groups):
        return False
    scaled = any(getattr(optimizer, key, None) is not None for key in ("grad_scale", "found_inf"))  # by a GradScaler
    return not scaled and all(type(p) in (nn.Parameter, Tensor) and is_dense(p) for p in parameters)


def is_dense(p: Tensor) -> bool:
    """Whether a parameter and its gradient are dense and real."""
    strided = p.layout == torch.strided and (p.grad is None or p.grad.layout == torch.strided)
    return strided and not p.is_complex()


def step_by_rule(
    optimizer: Any, inside: Inside, compiled: bool | None, prepare: Callable[[Tensor], None] = lambda p: None
) -> bool:
    """Take a step of the parameters that have a gradient and that `inside` takes.

    Args:
        optimizer: whose step, which `can_step_by_rule`.
        inside: what is inside it.
        compiled: whether it is; None for where that pays.
        prepare: called with each parameter, once it has a state.

    Returns:
        Whether what was to be compiled was; it runs eagerly where no compiler works.
    """
    passes = Passes(compiled)
    for group in optimizer.param_groups:
        _add(passes, optimizer, group, inside, prepare)
    return passes.run()


def _with_gradient(optimizer: Any, group: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of a group that have a gradient, and the gradients; torch gives them a state if there is none."""
    lists: list[list[Tensor]] = [[] for _ in list(inspect.signature(optimizer._init_group).parameters)[1:]]
    optimizer._init_group(group, *lists)
    return lists[0], lists[1]


def _add(
    passes: Passes, optimizer: Optimizer, group: Mapping[str, Any], inside: Inside, prepare: Callable[[Tensor], None]
) -> None:
    """The step of a group's parameters, to the passes; their steps are counted here."""
    params, grads = _with_gradient(optimizer, {**group, "params": list(filter(inside.takes, group["params"]))})
    if not params:
        return
    rule: Any = known_reading(optimizer)
    numbers = {key: _number(value) for key, value in group.items() if key != "params"}
    names, flags = rule.states(numbers), rule.flags(numbers)
    states = [optimizer.state[p] if names else {} for p in params]
    step = _beside(numbers, rule.count(params, states, numbers))
    for p in params:
        prepare(p)
    own = rule.scalars(numbers, step)
    maximize, decoupled = numbers["maximize"], bool(numbers.get("decoupled_weight_decay"))
    decay = 1 - numbers["lr"] * numbers["weight_decay"] if decoupled else numbers["weight_decay"]
    passes.add(
        (type(rule), maximize, decoupled, tuple(flags.items()), inside.key),
        _whole_step(rule, maximize, decoupled, names, flags, len(own), inside.around),
        [
            [p.detach(), *(state[name] for name in names), *inside.tensors(p), g]
            for p, state, g in zip(params, states, grads, strict=True)
        ],
        [decay, *own, *inside.columns(rule, numbers, step, params)],
    )


def _whole_step(
    rule: Rule,
    maximize: bool,
    decoupled: bool,
    names: Sequence[str],
    flags: Mapping[str, bool],
    numbers: int,
    around: Around,
) -> Update:
    """The step of (p, *state, *tensors inside, gradient) and (decay, *numbers of the rule, *those inside)."""

    def update(tensors: Sequence[Tensor], s: Sequence[Scalar]) -> list[Tensor]:
        p, *others, g = tensors
        state, decay, own = dict(zip(names, others, strict=False)), s[0], s[1 : 1 + numbers]

        def decayed(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            return (x.mul_(decay), g) if decoupled else (x, g + decay * x)

        def move(g: Tensor) -> tuple[Tensor, Tensor | None]:
            return rule.move(g, state, own, flags)

        new = around(p, -g if maximize else g, others[len(names) :], s[1 + numbers :], decayed, move)
        return [new, *state.values()]

    return update


def _number(x: Any) -> Any:
    """An entry of a parameter group with its numbers as floats, or as 0-dim tensors where they are on a device."""
    if isinstance(x, tuple | list):
        return tuple(map(_number, x))
    if not isinstance(x, Tensor):
        return x
    return x.item() if x.device.type == "cpu" else x.detach().reshape(())


def _beside(numbers: Mapping[str, Any], step: Tensor) -> Tensor:
    """`step` on the device of the tensors among the numbers, if there are any."""
    flat = [y for x in numbers.values() for y in (x if isinstance(x, tuple) else (x,)) if isinstance(y, Tensor)]
    return step.to(flat[0].device) if flat else step
