"""What our optimizers add to torch's: a penalty inside the step, and a state of higher precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wellcond.hooks import attachment_of, bare_step, parameters_of
from wellcond.penalties import Penalty
from wellcond.private_torch import uncompiled
from wellcond.steps.by_rule import Inside, can_step_by_rule, is_dense, step_by_rule
from wellcond.steps.penalty_application import Application
from wellcond.steps.penalty_inside import PenaltyInside
from wellcond.steps.regularization import Regularization
from wellcond.steps.regularize import attach, regularizations_of
from wellcond.steps.selection import Params, Selection


class OnePassOptimizer(Optimizer):
    """Mixed in before one of torch's optimizers.

    Without a penalty and a `state_dtype` every step is torch's own. The penalty is an `Application`, as `regularize`
    makes them, except that the step itself does it and no hook: in one pass over memory where it can, otherwise around
    torch's own step. Beside other regularizations of the same optimizer it takes its turn among their hooks.
    """

    _torch: ClassVar[type[Optimizer]]
    _state_dtype: torch.dtype | None = None
    _compile: bool | None = None

    def _set_up(
        self,
        penalty: Penalty | None,
        space: str,
        penalized: Params,
        model: nn.Module | None,
        compile: bool | None,
        state_dtype: torch.dtype | None,
    ) -> None:
        if state_dtype not in (None, torch.float32):
            raise ValueError(f"state_dtype is {state_dtype}; give torch.float32, or None for the parameters' own")
        if penalty is None and penalized is not None:
            raise ValueError("penalized selects parameters for a penalty; give penalty= too")
        self._state_dtype, self._compile = state_dtype, compile
        for p in list(self.state):  # Adagrad makes its sums at once
            self._widen(p)
        application = None
        if penalty is not None:
            selection = Selection(self, penalized, model)
            application = Application(self, penalty, space, None, selection, compiled=compile, built_in=True)
        self._refuse(application)
        if application:
            attach(self, application, stacklevel=4)

    @property
    def regularization(self) -> Regularization | None:
        """The handle of the penalty that the optimizer was built with, to schedule its strength, say; or None."""
        return next((r for r in regularizations_of(self) if r.application.built_in), None)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure`, if given, evaluates the loss and its gradient first and returns it."""
        attachment = attachment_of(self)
        in_step = attachment.in_step if attachment else None
        application = in_step if isinstance(in_step, Application) else None
        if application is None and self._state_dtype is None:
            # Torch's own, without the step hooks that torch wraps around each class's `step`: this one has them.
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
        ours = {"penalty", "space", "penalized", "strength", "model", "compile", "state_dtype"} & set(param_group)
        if ours:
            raise ValueError(
                f"a parameter group has {', '.join(sorted(ours))}; give it to the optimizer, or put another penalty on "
                "these parameters with wellcond.regularize"
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` of this class or of torch's gave; with a `state_dtype`, bit for bit."""
        given: dict[str, Any] = {}

        def restore(_: Optimizer) -> None:  # torch has cast the state to the parameters' dtype
            ids = [i for group in given["param_groups"] for i in group["params"]]
            for i, p in zip(ids, parameters_of(self), strict=True):
                self._widen(p, given["state"].get(i, {}))

        # As hooks, the last before and the first after: this sees what other hooks made of the state.
        hooks = [
            self.register_load_state_dict_pre_hook(lambda _, loaded: given.update(loaded)),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def __repr__(self) -> str:
        return "\n".join([super().__repr__(), *([repr(self.regularization)] if self.regularization else [])])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_state_dtype": self._state_dtype, "_compile": self._compile}

    @uncompiled
    def _own_step(self, application: Application | None) -> None:
        self._refuse(application)
        if application is None:
            self._by_rule(Inside())
            return
        if application.penalty.key is not None and can_step_by_rule(self, parameters_of(self)):
            self._by_rule(PenaltyInside(application))
            return
        application.add_to_gradient(self)
        application.before_step(self)
        if self._state_dtype is None:
            bare_step(self._torch)(self)
        else:
            self._by_rule(Inside())
        application.after_step(self)

    def _by_rule(self, inside: Inside) -> None:
        step_by_rule(self, inside, self._compile, prepare=self._widen)

    def _refuse(self, application: Application | None) -> None:
        """Refuse a penalty or a `state_dtype` on what only torch's own step can do.

        Raises:
            ValueError: naming it.
        """
        wide = self._state_dtype is not None
        if not (wide or application):
            return
        what = "state_dtype" if wide else "a penalty inside the step"
        for group in self.param_groups:
            for key in ("capturable", "differentiable", *(["fused"] if wide else [])):
                if group.get(key):
                    raise ValueError(f"{key}=True does not go with {what}; leave one of them out")
            for p in group["params"]:
                if not is_dense(p) and (wide or (application and application.selection.holds(p))):
                    name = application.selection.name(p, self) if application else f"a parameter of {tuple(p.shape)}"
                    kind = "is complex" if p.is_complex() else "is sparse, or has a sparse gradient"
                    raise ValueError(f"{name} {kind}, which does not go with {what}")

    def _widen(self, p: Tensor, saved: Mapping[str, Any] | None = None) -> None:
        """Bring the state of p, as `saved` has it if given, to `state_dtype` if that is wider than p's dtype."""
        if self._state_dtype is None or p.dtype not in (torch.float16, torch.bfloat16):
            return
        state = self.state[p]
        for key, value in (state if saved is None else saved).items():
            if key != "step" and isinstance(value, Tensor) and state[key].dtype != self._state_dtype:
                state[key] = value.to(p.device, self._state_dtype)
