"""The one thing that an optimizer carries for all that we put around its steps: two hooks that survive copying."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.private_torch import uncompiled

KEY = "wellcond"
"""Of what we put into an optimizer: its attribute, and its place among step hooks, where users' have numbers."""

_PRE, _POST = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"


class Attached:
    """What an optimizer carries around each of its steps: a penalty, or a change of variables. This one does nothing.

    A step calls, on all that it carries in their `order`: `add_to_gradient`; then `before_step`; after the optimizer's
    own step `after_step`; then, the last first, `leave`.

    Attributes:
        built_in: whether the optimizer's own step does it, and no hook.
        changes_variables: whether the optimizer's parameters hold something else than p during its step.
    """

    built_in = False
    changes_variables = False

    @property
    def order(self) -> tuple[int, str]:
        """Its place, whatever the order in which they were attached."""
        return 0, ""

    def check_parameters(self, optimizer: Optimizer) -> None:
        """Refuse what it can't be on; called again where the optimizer has got other parameters.

        Raises:
            TypeError, ValueError: naming the parameter.
        """

    def refuse_beside(self, other: Attached, optimizer: Optimizer) -> None:
        """Refuse another one that it does not go with.

        Raises:
            ValueError: saying what to do.
        """

    def add_to_gradient(self, optimizer: Optimizer) -> None:
        """First of all, when the gradients are there; again for every further gradient of a step with a closure."""

    def before_step(self, optimizer: Optimizer) -> None:
        """After all gradients are made up: what moves p before the step."""

    def in_loss(self, optimizer: Optimizer) -> Tensor | float:
        """What it added to the gradient is the gradient of."""
        return 0.0

    def after_step(self, optimizer: Optimizer) -> None:
        """What moves p after the step."""

    def leave(self, optimizer: Optimizer) -> None:
        """Last of all: give back what was borrowed for the step."""

    def surface(self, optimizer: Optimizer) -> None:
        """In the middle of a step, before its closure evaluates another gradient: at p."""

    def show(self, optimizer: Optimizer) -> None:
        """Make parameters and gradients what the optimizer sees of them, until `abandon`."""

    def seen(self, optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the optimizer would be given of these gradients, in their dtype."""
        return gradients

    def whole(self, optimizer: Optimizer, own: Any) -> Any:
        """The preconditioner of the whole step, given the optimizer's own."""
        return own

    def abandon(self, optimizer: Optimizer) -> None:
        """Put everything back as it was before a step that failed."""


class Attachment:
    """Calls what one optimizer carries around each of its steps.

    torch drops hooks when an optimizer is copied or pickled (`Optimizer.__getstate__`), without a word. The attachment
    puts itself into the optimizer's dictionary of hooks under its own name and hands both on in `__getstate__`, which
    it replaces on this one object: so a copy, and a copy of a copy, has them, over its own parameters. It refers to the
    optimizer weakly, so that weights are freed with the optimizer and not when the garbage collector finds a cycle.
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = weakref.ref(optimizer)
        self.applications: list[Attached] = []
        self._checked: set[int] = set()
        optimizer.__dict__.update({KEY: self, "__getstate__": self.getstate})
        getattr(optimizer, _PRE)[KEY] = self.before
        getattr(optimizer, _POST)[KEY] = self.after
        # The user's own hooks after a step, say for an average of weights, see what the step ends with.
        getattr(optimizer, _POST).move_to_end(KEY, last=False)

    def add(self, application: Attached) -> None:
        self.applications.append(application)
        self.applications.sort(key=lambda a: a.order)

    def drop(self, application: Attached) -> None:
        if application in self.applications:
            self.applications.remove(application)
        optimizer = self._optimizer()
        if not self.applications and optimizer is not None:
            optimizer.__dict__.pop(KEY, None)
            optimizer.__dict__.pop("__getstate__", None)
            for hooks in (_PRE, _POST):
                getattr(optimizer, hooks).pop(KEY, None)

    def getstate(self) -> dict[str, Any]:
        """The optimizer's own state to be copied, and ours."""
        optimizer: Any = self._optimizer()
        kind: Any = type(optimizer)
        ours = {_PRE: OrderedDict({KEY: self.before}), _POST: OrderedDict({KEY: self.after})}
        return {**kind.__getstate__(optimizer), **ours, KEY: self, "__getstate__": self.getstate}

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer(), "applications": self.applications}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._optimizer, self.applications = weakref.ref(state["optimizer"]), state["applications"]
        self._checked = set()

    @uncompiled
    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Step pre-hook. A closure evaluates the gradient inside the step: it is wrapped, so that we come after it."""
        if nested(optimizer):
            return None
        for application in self._hooked:
            application.abandon(optimizer)  # if the last step raised
        positional = len(args) > 1 and callable(args[1])
        closure = args[1] if positional else kwargs.get("closure")
        if closure is None:
            self._before(optimizer)
            return None
        wrapped = self._after_gradient(optimizer, closure)
        return ((args[0], wrapped, *args[2:]), kwargs) if positional else (args, {**kwargs, "closure": wrapped})

    @uncompiled
    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Step post-hook."""
        if nested(optimizer):
            return
        with torch.no_grad():
            try:
                for application in self._hooked:
                    application.after_step(optimizer)
            finally:
                for application in reversed(self._hooked):
                    application.leave(optimizer)

    @property
    def in_step(self) -> Attached | None:
        """What the optimizer's own step does, and no hook: one that is built in, unless others have turns around it."""
        alone = len(self.applications) == 1 and self.applications[0].built_in
        return self.applications[0] if alone else None

    @property
    def _hooked(self) -> list[Attached]:
        """All but that."""
        in_step = self.in_step
        return [a for a in self.applications if a is not in_step]

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, first: bool = True) -> None:
        self._check_parameters(optimizer)
        try:
            for application in self._hooked:
                application.add_to_gradient(optimizer)
            if first:  # after all gradients are made up, since this may move p
                for application in self._hooked:
                    application.before_step(optimizer)
        except BaseException:
            for application in reversed(self._hooked):
                application.abandon(optimizer)
            raise

    def _check_parameters(self, optimizer: Optimizer) -> None:
        ids = set(map(id, parameters_of(optimizer)))
        if ids <= self._checked:
            return
        for i, application in enumerate(self.applications):
            application.check_parameters(optimizer)
            for other in self.applications[:i]:
                application.refuse_beside(other, optimizer)
        self._checked = ids

    def _after_gradient(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        calls = 0
        versions = self._versions(optimizer)

        def wrapped() -> Any:
            nonlocal calls
            if calls == 0 and self._versions(optimizer) != versions:
                raise RuntimeError(
                    f"{type(optimizer).__name__} moves its parameters before it evaluates the closure, which is not "
                    "known to be in z; reparameterize does not go with it"
                )
            with torch.no_grad():
                for application in reversed(self._hooked if calls else []):
                    application.surface(optimizer)
            loss = closure()
            with torch.no_grad():
                self._before(optimizer, first=calls == 0)
                if isinstance(optimizer, torch.optim.LBFGS):  # its line search needs the loss that the gradient is of
                    for application in self._hooked:
                        loss = loss + application.in_loss(optimizer)
            calls += 1
            return loss

        return wrapped

    def _versions(self, optimizer: Optimizer) -> list[int]:
        """Of the parameters, where they are to hold z: they change when one is written to."""
        if not any(a.changes_variables for a in self.applications):
            return []
        return [p._version for p in parameters_of(optimizer)]


class Handle:
    """What puts something on an optimizer returns one of these.

    Attributes:
        optimizer: the optimizer.
        application: what it carries.
    """

    def __init__(self, optimizer: Optimizer, application: Attached):
        self.optimizer, self.application = optimizer, application

    @property
    def _removed(self) -> str:
        """For a `__repr__`."""
        return "" if self.application in carried_by(self.optimizer) else "removed: "

    def remove(self) -> None:
        """Take it off; what it did stays done, and what a step that raised has left is put back."""
        self.application.abandon(self.optimizer)
        if attachment := attachment_of(self.optimizer):
            attachment.drop(self.application)


def attach(optimizer: Optimizer, application: Attached) -> None:
    """Put it in force.

    Raises:
        TypeError: for an optimizer that runs no step hooks.
        ValueError: beside another that it does not go with.
    """
    check_runs_hooks(optimizer)
    for other in carried_by(optimizer):
        application.refuse_beside(other, optimizer)
    (attachment_of(optimizer) or Attachment(optimizer)).add(application)


def check_runs_hooks(optimizer: Optimizer) -> None:
    """Refuse an optimizer that runs no step hooks.

    Raises:
        TypeError: naming it.
    """
    if not getattr(type(optimizer).step, "hooked", False):
        name = type(optimizer).__name__
        raise TypeError(f"{name} does not run step hooks; give the torch optimizer inside it")


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The optimizer's parameters, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def name_of(p: Tensor, optimizer: Optimizer) -> str:
    """The parameter's name where the optimizer knows it, else its place."""
    for g, group in enumerate(optimizer.param_groups):
        for i, q in enumerate(group["params"]):
            if q is p:
                return group["param_names"][i] if "param_names" in group else f"parameter {i} of group {g}"
    return f"a parameter of shape {tuple(p.shape)}"


def bare_step(kind: type[Optimizer]) -> Any:
    """The `step` of a class without what torch puts around it: hooks, also those for all optimizers."""
    step: Any = kind.step
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    return step


def attachment_of(optimizer: Optimizer) -> Attachment | None:
    """What the optimizer carries, if anything."""
    return optimizer.__dict__.get(KEY)


def carried_by(optimizer: Optimizer) -> list[Attached]:
    """All that it carries, in its order."""
    attachment = attachment_of(optimizer)
    return attachment.applications if attachment else []


def unobserved(optimizer: Optimizer, application: Attached) -> bool:
    """Whether only the optimizer's own step sees what this one makes of parameters and gradients."""
    pre, post = getattr(optimizer, _PRE), getattr(optimizer, _POST)
    return carried_by(optimizer) == [application] and next(reversed(pre)) == next(iter(post)) == KEY


@contextlib.contextmanager
def as_optimizer_sees(optimizer: Optimizer) -> Iterator[None]:
    """Inside, parameters and gradients are what the optimizer is given: z and Pᵀg under a change of variables."""
    shown = list(carried_by(optimizer))
    with torch.no_grad():
        try:
            for application in shown:
                application.show(optimizer)
            yield
        finally:
            for application in reversed(shown):
                application.abandon(optimizer)


def can_nest(optimizer: Optimizer) -> bool:
    """Whether several classes of the optimizer have a step of their own, one of which may call another."""
    return sum("step" in vars(kind) and kind is not Optimizer for kind in type(optimizer).__mro__) > 1


def nested(optimizer: Optimizer) -> bool:
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
