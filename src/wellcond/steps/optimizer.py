"""What our optimizers add to torch's: a penalty inside the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

from wellcond.hooks import attachment_of, bare_step, parameters_of
from wellcond.private_torch import uncompiled
from wellcond.steps.by_rule import can_step_by_rule, is_dense, step_by_rule
from wellcond.steps.penalty_inside import PenaltyInside
from wellcond.steps.penalty_step import Application
from wellcond.steps.regularization import Regularization
from wellcond.steps.regularize import regularizations_of


class OnePassOptimizer(Optimizer):
    """Mixed in before one of torch's optimizers.

    Without a penalty every step is torch's own. The penalty is an `Application`, as `regularize` makes them, except
    that the step itself does it and no hook: in one pass over memory where it can, otherwise around torch's own step.
    Beside other regularizations of the same optimizer it takes its turn among their hooks.
    """

    _torch: ClassVar[type[Optimizer]]

    @property
    def regularization(self) -> Regularization | None:
        """The handle of the penalty that the optimizer was built with, to schedule its strength, say; or None."""
        return next((r for r in regularizations_of(self) if r.application.built_in), None)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure`, if given, evaluates the loss and its gradient first and returns it."""
        attachment = attachment_of(self)
        application = attachment.in_step if attachment else None
        if not isinstance(application, Application):
            return bare_step(self._torch)(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._own_step(application)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's.

        Raises:
            ValueError: for a group with a penalty of its own, which a `state_dict` could not keep.
        """
        ours = {"penalty", "space", "penalized", "strength", "model", "compile"} & set(param_group)
        if ours:
            raise ValueError(
                f"a parameter group has {', '.join(sorted(ours))}; give it to the optimizer, or put another penalty on "
                "these parameters with wellcond.regularize"
            )
        super().add_param_group(param_group)

    def __repr__(self) -> str:
        return "\n".join([super().__repr__(), *([repr(self.regularization)] if self.regularization else [])])

    @uncompiled
    def _own_step(self, application: Application) -> None:
        self.check_takes(application)
        if application.penalty.key is not None and can_step_by_rule(self, parameters_of(self)):
            step_by_rule(self, PenaltyInside(application), application.compiled)
            return
        application.add_to_gradient(self)
        application.before_step(self)
        bare_step(self._torch)(self)
        application.after_step(self)

    def check_takes(self, application: Application) -> None:
        """Refuse a penalty on what only torch's own step can do.

        Raises:
            ValueError: naming it.
        """
        what = "does not go with a penalty inside the step"
        for group in self.param_groups:
            for key in ("capturable", "differentiable"):
                if group.get(key):
                    raise ValueError(f"{key}=True {what}; leave one of them out")
            for p in group["params"]:
                if application.selection.holds(p) and not is_dense(p):
                    name = application.selection.name(p, self)
                    raise ValueError(f"{name} is sparse, or has a sparse gradient, which {what}")
