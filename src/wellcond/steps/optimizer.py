"""What our optimizers add to torch's: a penalty inside the step, and a state of higher precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wellcond.hooks import attachment_of
from wellcond.one_pass import Passes
from wellcond.penalties import Penalty
from wellcond.preconditioners import reading_for
from wellcond.steps.penalty_step import Application
from wellcond.steps.regularization import Regularization
from wellcond.steps.regularize import attach, regularizations_of
from wellcond.steps.selection import Params, Selection
from wellcond.steps.updates import Rule, whole_step


class OnePassOptimizer(Optimizer):
    """Mixed in before one of torch's optimizers.

    Without a penalty and a `state_dtype` every step is torch's own. The penalty is an `Application`, as `regularize`
    makes them, except that the step itself does it and no hook: in one pass over memory where it can, otherwise around
    torch's own step. Beside other regularizations of the same optimizer it takes its turn among their hooks.
    """

    _torch: ClassVar[type[Optimizer]]
    _rule: ClassVar[Rule]
    _lists: ClassVar[list[str]]  # what torch's `_init_group` fills; parameters and gradients come first
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
        self._is_plain(application)
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
            return self._torchs_step(closure)
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
            for i, p in zip(ids, (p for group in self.param_groups for p in group["params"]), strict=True):
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

    def _torchs_step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Torch's own, bare of the step hooks that torch wraps around each class's `step`: ours has them already."""
        step: Any = self._torch.step
        while getattr(step, "hooked", False):
            step = step.__wrapped__
        return step(self, closure)

    @torch._disable_dynamo
    def _own_step(self, application: Application | None) -> None:
        plain = self._is_plain(application)
        scaled = any(getattr(self, key, None) is not None for key in ("grad_scale", "found_inf"))  # by a GradScaler
        if application is None or (plain and not scaled and application.penalty.key is not None):
            self._one_pass(application)
            return
        application.add_to_gradient(self)
        application.before_step(self)
        if self._state_dtype is None:
            self._torchs_step()
        else:
            self._one_pass(None)
        application.after_step(self)

    def _is_plain(self, application: Application | None) -> bool:
        """Whether all parameters are dense and real; where one is not, torch's own step has to do them.

        Raises:
            ValueError: where a penalty or a `state_dtype` is on what only torch's own step can do.
        """
        wide = self._state_dtype is not None
        if application:
            application.check_parameters(self)
        elif not wide:
            return True
        what = "state_dtype" if wide else "a penalty inside the step"
        plain = True
        for group in self.param_groups:
            for key in ("capturable", "differentiable", *(["fused"] if wide else [])):
                if group.get(key):
                    raise ValueError(f"{key}=True does not go with {what}; leave one of them out")
            for p in group["params"]:
                dense = p.layout == torch.strided and (p.grad is None or p.grad.layout == torch.strided)
                if dense and not p.is_complex():
                    plain &= type(p) in (nn.Parameter, Tensor)
                    continue
                plain = False
                if wide or (application and application.selection.holds(p)):
                    name = application.selection.name(p, self) if application else f"a parameter of {tuple(p.shape)}"
                    kind = "is complex" if p.is_complex() else "is sparse, or has a sparse gradient"
                    raise ValueError(f"{name} {kind}, which does not go with {what}")
        return plain

    def _one_pass(self, application: Application | None) -> None:
        rule, reading = self._rule, reading_for(self)
        inside = (application.penalty, application.space, application.via) if application else None
        passes = Passes(self._compile)
        for group in self.param_groups:
            lists: list[list[Tensor]] = [[] for _ in self._lists]
            self._init_group(group, *lists)  # type: ignore[attr-defined]
            params, grads = lists[:2]
            if not params:
                continue
            numbers = {key: _number(value) for key, value in group.items() if key != "params"}
            names = rule.states(numbers)
            states = [self.state[p] if names else {} for p in params]
            step = _beside(numbers, rule.count(numbers, params, states))
            columns = rule.scalars(numbers, step)
            if application:
                held = torch.tensor([float(application.selection.holds(p)) for p in params])
                held = held.to(step.device, step.dtype, non_blocking=True)
                columns += [reading.penalty_rate(numbers, step), application.penalty.strength or 0.0, held]
            flags = (numbers["maximize"], *rule.flags(numbers))
            key = (type(rule), flags, application and (application.penalty.key, application.space, application.via))
            rows = []
            for p, g, state in zip(params, grads, states, strict=True):
                self._widen(p)
                rows.append([p, *(state[name] for name in names), g])
            # Numbers are filled in where the counts are, so that nothing waits for a copy from the host.
            filled = (c if isinstance(c, Tensor) else torch.full_like(step, c) for c in columns)
            scalars = torch.stack([c.to(step).expand(len(params)) for c in filled], 1)
            passes.add(key, functools.partial(whole_step, rule, flags, inside), rows, scalars)
        passes.run()

    def _widen(self, p: Tensor, saved: Mapping[str, Any] | None = None) -> None:
        """Bring the state of p, as `saved` has it if given, to `state_dtype` if that is wider than p's dtype."""
        if self._state_dtype is None or p.dtype not in (torch.float16, torch.bfloat16):
            return
        state = self.state[p]
        for key, value in (state if saved is None else saved).items():
            if key != "step" and isinstance(value, Tensor) and state[key].dtype != self._state_dtype:
                state[key] = value.to(p.device, self._state_dtype)


def _number(x: Any) -> Any:
    """An entry of a parameter group with its numbers as floats, or as 0-dim tensors where they are on a device."""
    if isinstance(x, tuple | list):
        return tuple(map(_number, x))
    if not isinstance(x, Tensor):
        return x
    return x.item() if x.device.type == "cpu" else x.detach().reshape(())


def _beside(numbers: Mapping[str, Any], step: Tensor) -> Tensor:
    """`step` in float64, on the device of the tensors among the numbers, if there are any."""
    flat = [y for x in numbers.values() for y in (x if isinstance(x, tuple) else (x,)) if isinstance(y, Tensor)]
    return step.to(flat[0].device if flat else step.device, torch.float64)
