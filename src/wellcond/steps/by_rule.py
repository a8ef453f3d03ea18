"""The step of one of torch's optimizers taken by its rule, with something inside it, in one pass over memory."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wellcond.one_pass import Passes, Scalar, Update
from wellcond.preconditioners import Rule, reading_for

# The decay of p and of the gradient for it; and what the gradient then moves p by, with the P² of the step.
Decay = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Move = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class Inside:
    """What is inside a step, between the gradient and p; this one is nothing.

    Attributes:
        key: of the function that `around` is.
    """

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

    def around(
        self, p: Tensor, g: Tensor, tensors: Sequence[Tensor], s: Sequence[Scalar], decayed: Decay, move: Move
    ) -> Tensor:
        """The p after the step; traced, so that it may ask nothing of values."""
        p, g = decayed(p, g)
        return p + move(g)[0]


def can_step_by_rule(optimizer: Optimizer, parameters: Iterable[Tensor]) -> bool:
    """Whether they are plain dense tensors, and a rule is known that does all that the optimizer does to them."""
    if not isinstance(reading_for(optimizer), Rule) or any(g.get("capturable") for g in optimizer.param_groups):
        return False
    scaled = any(getattr(optimizer, key, None) is not None for key in ("grad_scale", "found_inf"))  # by a GradScaler
    return not scaled and all(type(p) in (nn.Parameter, Tensor) and is_dense(p) for p in parameters)


def is_dense(p: Tensor) -> bool:
    """Whether a parameter and its gradient are dense and real."""
    strided = p.layout == torch.strided and (p.grad is None or p.grad.layout == torch.strided)
    return strided and not p.is_complex()


def step_by_rule(
    optimizer: Any, inside: Inside, compiled: bool | None, prepare: Callable[[Tensor], None] | None = None
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
    rule: Any = reading_for(optimizer)
    kind: type[Optimizer] = type(optimizer)
    passes = Passes(compiled)
    for group in optimizer.param_groups:
        lists: list[list[Tensor]] = [[] for _ in range(_lists(kind))]
        optimizer._init_group({**group, "params": [p for p in group["params"] if inside.takes(p)]}, *lists)
        params, grads = lists[:2]
        if not params:
            continue
        numbers = {key: _number(value) for key, value in group.items() if key != "params"}
        names, flags = rule.states(numbers), rule.flags(numbers)
        states = [optimizer.state[p] for p in params] if names else [{} for _ in params]
        step = _beside(numbers, rule.count(params, states, numbers))
        if prepare:
            for p in params:
                prepare(p)
        own = rule.scalars(numbers, step)
        decoupled = bool(numbers.get("decoupled_weight_decay"))
        decay = 1 - numbers["lr"] * numbers["weight_decay"] if decoupled else numbers["weight_decay"]
        rows = [
            [p.detach(), *(state[name] for name in names), *inside.tensors(p), g]
            for p, state, g in zip(params, states, grads, strict=True)
        ]
        build = functools.partial(_whole_step, rule, numbers["maximize"], decoupled, names, flags, len(own), inside)
        columns = [decay, *own, *inside.columns(rule, numbers, step, params)]
        key = (type(rule), numbers["maximize"], decoupled, tuple(flags.items()), inside.key)
        passes.add(key, build, rows, columns)
    return passes.run()


def _whole_step(
    rule: Rule,
    maximize: bool,
    decoupled: bool,
    names: Sequence[str],
    flags: Mapping[str, bool],
    numbers: int,
    inside: Inside,
) -> Update:
    """The step of (p, *state, *tensors of `inside`, gradient) and (decay, *numbers of the rule, *those of `inside`)."""

    def update(tensors: Sequence[Tensor], s: Sequence[Scalar]) -> list[Tensor]:
        p, *others, g = tensors
        state, decay, own = dict(zip(names, others, strict=False)), s[0], s[1 : 1 + numbers]

        def decayed(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            return (x * decay, g) if decoupled else (x, g + decay * x)

        def move(g: Tensor) -> tuple[Tensor, Tensor | None]:
            return rule.move(g, state, own, flags)

        new = inside.around(p, -g if maximize else g, others[len(names) :], s[1 + numbers :], decayed, move)
        return [new, *state.values()]

    return update


@functools.cache
def _lists(kind: type[Optimizer]) -> int:
    """How many lists torch's `_init_group` fills; those of parameters and of gradients come first."""
    return len(inspect.signature(kind._init_group).parameters) - 2  # type: ignore[attr-defined]


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
