"""The one thing that an optimizer carries for all its regularizations: two step hooks that survive copying."""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from wellcond.regularization.application import Application

_KEY = "wellcond"
_PRE, _POST = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"


class Attachment:
    """Calls the applications of one optimizer around each of its steps, in an order of its own.

    torch drops hooks when an optimizer is copied or pickled (`Optimizer.__getstate__`), without a word. The attachment
    puts itself into the optimizer's dictionary of hooks under its own name and hands both on in `__getstate__`, which
    it replaces on this one object: so a copy, and a copy of a copy, has them, over its own parameters. It refers to the
    optimizer weakly, so that weights are freed with the optimizer and not when the garbage collector finds a cycle.
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = weakref.ref(optimizer)
        self.applications: list[Application] = []
        optimizer.__dict__.update({_KEY: self, "__getstate__": self.getstate})
        getattr(optimizer, _PRE)[_KEY] = self.before
        getattr(optimizer, _POST)[_KEY] = self.after

    def add(self, application: Application) -> None:
        self.applications.append(application)
        self.applications.sort(key=lambda a: a.order)

    def drop(self, application: Application) -> None:
        if application in self.applications:
            self.applications.remove(application)
        optimizer = self._optimizer()
        if not self.applications and optimizer is not None:
            optimizer.__dict__.pop(_KEY, None)
            optimizer.__dict__.pop("__getstate__", None)
            for hooks in (_PRE, _POST):
                getattr(optimizer, hooks).pop(_KEY, None)

    def getstate(self) -> dict[str, Any]:
        """The optimizer's own state to be copied, and ours."""
        optimizer: Any = self._optimizer()
        kind: Any = type(optimizer)
        ours = {_PRE: OrderedDict({_KEY: self.before}), _POST: OrderedDict({_KEY: self.after})}
        return {**kind.__getstate__(optimizer), **ours, _KEY: self, "__getstate__": self.getstate}

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer(), "applications": self.applications}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._optimizer, self.applications = weakref.ref(state["optimizer"]), state["applications"]

    @torch._disable_dynamo  # torch.compiler.disable, without importing the compiler for those who don't use it
    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Step pre-hook. A closure evaluates the gradient inside the step: it is wrapped, so that we come after it."""
        if _nested(optimizer):
            return None
        positional = len(args) > 1 and callable(args[1])
        closure = args[1] if positional else kwargs.get("closure")
        if closure is None:
            self._before(optimizer)
            return None
        wrapped = self._after_gradient(optimizer, closure)
        return ((args[0], wrapped, *args[2:]), kwargs) if positional else (args, {**kwargs, "closure": wrapped})

    @torch._disable_dynamo
    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Step post-hook."""
        if not _nested(optimizer):
            with torch.no_grad():
                for application in self._hooked:
                    application.after_step(optimizer)

    @property
    def in_step(self) -> Application | None:
        """What the optimizer's own step does, and no hook: one that is built in, unless others have turns around it."""
        alone = len(self.applications) == 1 and self.applications[0].built_in
        return self.applications[0] if alone else None

    @property
    def _hooked(self) -> list[Application]:
        """All but that."""
        in_step = self.in_step
        return [a for a in self.applications if a is not in_step]

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, first: bool = True) -> None:
        new = [a.check_parameters(optimizer) for a in self._hooked]
        if any(new):
            for i, application in enumerate(self.applications):
                for other in self.applications[:i]:
                    refuse_conflict(application, other, optimizer)
        for application in self._hooked:
            application.add_to_gradient(optimizer)
        if first:  # after all gradients are made up, since this may move p
            for application in self._hooked:
                application.before_step(optimizer)

    def _after_gradient(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        calls = 0

        def wrapped() -> Any:
            nonlocal calls
            loss = closure()
            with torch.no_grad():
                if isinstance(optimizer, torch.optim.LBFGS):  # its line search needs the loss that the gradient is of
                    for application in self._hooked:
                        loss = loss + application.in_loss(optimizer)
                self._before(optimizer, first=calls == 0)
            calls += 1
            return loss

        return wrapped


def attachment_of(optimizer: Optimizer) -> Attachment | None:
    """What the optimizer carries, if anything."""
    return optimizer.__dict__.get(_KEY)


def refuse_conflict(new: Application, old: Application, optimizer: Optimizer) -> None:
    """Refuse two penalties on one parameter that don't make the penalty that is their sum.

    Raises:
        ValueError: naming the parameter.
    """
    ids = {id(p) for p in old.selection.of(optimizer)}
    shared = [p for p in new.selection.of(optimizer) if id(p) in ids]
    if not shared:
        return
    already = f"{new.selection.name(shared[0], optimizer)} is under {old.penalty!r} ({old.space}, {old.via}) already"
    if type(new.penalty) is type(old.penalty):
        raise ValueError(f"{already}; set the strength of its handle, or remove() it first")
    if new.via == old.via == "prox":
        # The projection on a box after a convex penalty of single entries is the prox of both.
        constraint = new.penalty.strength is None or old.penalty.strength is None
        both = all(a.penalty.separable and a.penalty.convex for a in (new, old))
        if not (constraint and both and new.space == old.space):
            raise ValueError(
                f"{already}, and two proximal steps don't make that of the sum; use one penalty that is the sum "
                "(ElasticNet, SparseGroupL1), or remove() it first"
            )


def _nested(optimizer: Optimizer) -> bool:
    """Whether this hook runs inside another step of the same optimizer.

    torch wraps the `step` of a class and that of its base class: the hooks of a subclass that calls super().step() run
    twice, and only the outer run counts.
    """
    frame, steps = sys._getframe(1), 0
    while frame is not None and steps < 2:
        if frame.f_code.co_name == "wrapper" and frame.f_code.co_qualname.startswith("Optimizer.profile_hook_step"):
            steps += frame.f_locals.get("self") is optimizer
        frame = frame.f_back  # type: ignore[assignment]
    return steps > 1
