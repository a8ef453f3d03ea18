"""The next step of an optimizer, taken by a copy of it: the optimizer and its parameters stay as they are."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond import hooks
from wellcond.parameters import flatten, unflatten
from wellcond.problem import Problem, random_state


def clone(optimizer: Optimizer, twins: dict[int, Any], *, attached: bool) -> Optimizer:
    """A copy of an optimizer with its state, over copies of its parameters.

    torch's own protocol of copying drops what a subclass keeps beside its groups and state, such as the flat view of
    LBFGS, so attributes are copied one by one. The users' step hooks and what a scheduler puts around `step` are left
    out: they may count steps.

    Args:
        optimizer: any of torch's.
        twins: as the memo of `copy.deepcopy`, the copies that there are already (of the model, say), by the id of the
            original; those of the other parameters are added.
        attached: whether the copy has what wellcond attached to the optimizer, such as a penalty.
    """
    twin = twins[id(optimizer)] = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        if name.startswith("_optimizer") and name.endswith("_hooks"):
            value = OrderedDict((key, hook) for key, hook in value.items() if key == hooks.KEY and attached)
        elif name == "step" or (name in (hooks.KEY, "__getstate__") and not attached):
            continue
        twin.__dict__[name] = copy.deepcopy(value, twins)
    return twin


def bare_step(optimizer: Optimizer, closure: Callable[[], Tensor]) -> None:
    """A step without hooks, not even those that the user registered for all optimizers.

    Args:
        optimizer: a copy.
        closure: evaluates the loss and puts its gradient in place, for an optimizer that asks for it.
    """
    step = hooks.bare_step(type(optimizer))
    asked = inspect.signature(step).parameters.get("closure")
    if asked is not None and asked.default is inspect.Parameter.empty:
        step(optimizer, closure)
    else:
        step(optimizer)


def next_step(problem: Problem, optimizer: Optimizer, gradient: Tensor) -> tuple[Tensor, int]:
    """What the optimizer would add to the parameters now, (n,), and the gradients that it takes: one, unless the
    optimizer evaluates the loss in its step.

    Args:
        problem: whose parameters; those that the optimizer does not have stay.
        optimizer: any of torch's.
        gradient: of the problem, (n,), with `problem.unreached` as it left it.

    Raises:
        ValueError: if the optimizer has none of the problem's parameters.
    """
    held = set(map(id, hooks.parameters_of(optimizer)))
    if held.isdisjoint(map(id, problem.parameters)):
        raise ValueError("the optimizer has none of the problem's parameters; build it from this model's parameters()")
    twins: dict[int, Any] = {}
    twin = clone(optimizer, twins, attached=False)
    copies = [twins[id(p)] if id(p) in held else p for p in problem.parameters]

    def displacement() -> Tensor:
        pairs = zip(problem.parameters, copies, strict=True)
        return flatten([q.detach().to(problem.dtype) - p.detach().to(problem.dtype) for p, q in pairs])

    def give(gradient: Tensor) -> None:
        pieces = unflatten(gradient, problem.parameters)
        for name, p, q, g in zip(problem.names, problem.parameters, copies, pieces, strict=True):
            if q is not p and name not in problem.unreached:
                g = g.to(q.dtype)
                q.grad = g.to_sparse(1) if isinstance(twin, torch.optim.SparseAdam) else g.clone()

    gradients = 1

    def closure() -> Tensor:
        nonlocal gradients
        gradients += 1
        with problem.moved(displacement()):
            give(problem.gradient())
            return torch.tensor(problem.loss(), dtype=problem.dtype, device=problem.device)

    with torch.no_grad(), random_state(problem.seed, problem.device):
        give(gradient)
        bare_step(twin, closure)
        return displacement(), gradients
