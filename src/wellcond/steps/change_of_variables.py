"""A given P around the steps of an optimizer: on its gradients, or on its parameters too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from wellcond.hooks import Attached, name_of, parameters_of, unobserved
from wellcond.preconditioners import DiagonalPreconditioner, NotPreconditionedError, Preconditioner, known_reading
from wellcond.steps.by_rule import can_step_by_rule, is_dense, step_by_rule
from wellcond.steps.coordinates import Coordinates, Memory, decays_of_translation, fresh
from wellcond.steps.through_p import ThroughP

# Entries × steps after which compiling, some 10 s, has been worth it: it saves about a nanosecond per entry and step.
WORTH_COMPILING = 10**10


class GivenP(Attached):
    """A given P around the steps of an optimizer.

    Attributes:
        P: as it was given.
        verb: what was called.
        how: what it makes of gradients, "gram" for PPᵀg or "adjoint" for Pᵀg.
    """

    verb: str
    how: str

    def __init__(self, optimizer: Optimizer, P: Preconditioner, compiled: bool | None):
        if compiled not in (None, True, False):
            raise TypeError(f"compile is {compiled!r}; give True, False or None")
        if not isinstance(P, Preconditioner):
            what = f"class {P.__name__}" if isinstance(P, type) else type(P).__name__
            raise TypeError(f"P is a {what}; give a preconditioner, such as BatchNormPreconditioner(model)")
        self.P, self._compiled = P, compiled
        self._entries = 0  # that steps were of so far
        self._through: ThroughP | None = None  # the step taken instead of the optimizer's own
        self._memory = Memory()
        self._raw: list[tuple[Tensor, Tensor]] = []  # parameters and their gradients as they were
        self._restricted: tuple[list[int], Preconditioner] | None = None  # P over the parameters of the last step
        self.check_parameters(optimizer)
        if not self.covered(optimizer):
            raise ValueError(
                f"the optimizer has none of the {len(P.parameters)} parameters of P; build both of the same model"
            )
        self._check_finite(optimizer)

    def covered(self, optimizer: Optimizer) -> list[Tensor]:
        """The optimizer's parameters that P covers, in its order."""
        ids = {id(p) for p in self.P.parameters}
        return [p for p in parameters_of(optimizer) if id(p) in ids]

    def restricted(self, optimizer: Optimizer, parameters: list[Tensor]) -> Preconditioner:
        """P over some of the parameters that it covers."""
        key = list(map(id, parameters))
        if self._restricted is None or self._restricted[0] != key:
            dtypes = {torch.promote_types(p.dtype, torch.float32) for p in parameters}
            names = [name_of(p, optimizer) for p in parameters]
            self._restricted = key, self.P.over(parameters, names, dtypes.pop() if len(dtypes) == 1 else None)
        return self._restricted[1]

    def check_parameters(self, optimizer: Optimizer) -> None:
        covered = self.covered(optimizer)
        for p in covered:
            if is_lazy(p):
                raise ValueError(
                    f"{name_of(p, optimizer)} is not initialized; run the lazy model once on a batch first"
                )
            if p.layout != torch.strided or not p.is_floating_point():
                kind = f"sparse ({p.layout})" if p.layout != torch.strided else str(p.dtype)
                raise ValueError(f"{name_of(p, optimizer)} is {kind}; P is for dense real parameters, leave it out")
        if covered and any(group.get("differentiable") for group in optimizer.param_groups):
            raise ValueError("differentiable=True: no gradient goes through a change of variables; give False")

    def refuse_beside(self, other: Attached, optimizer: Optimizer) -> None:
        if isinstance(other, GivenP):
            raise ValueError(
                f"the optimizer is under {other.verb} already; remove() that first, or give {self.verb} the product of "
                "the two preconditioners, P1 @ P2"
            )

    def whole(self, optimizer: Optimizer, own: Preconditioner) -> Preconditioner:
        covered = self.covered(optimizer)
        given = self.P.over(covered, [name_of(p, optimizer) for p in covered], torch.float64)
        return (given @ own).over(own.parameters, [name_of(p, optimizer) for p in own.parameters])

    def leave(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()
        through, self._through = self._through, None
        if through and not step_by_rule(optimizer, through, compiled=True):
            self._compiled = False  # no compiler works here
        self.P.stepped()

    def abandon(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()
        self._through = None

    def add_to_gradient(self, optimizer: Optimizer) -> None:
        parameters = self._with_gradient(optimizer)
        if not self._take_over(optimizer, parameters):
            self._change_gradients(optimizer, parameters)

    def surface(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()

    def show(self, optimizer: Optimizer) -> None:
        self._change_gradients(optimizer, self._with_gradient(optimizer))

    def _take_over(self, optimizer: Optimizer, parameters: list[Tensor]) -> bool:
        """Whether the step is ours, taken in `leave`: the optimizer is shown no gradients, and so it takes none."""
        self._entries += sum(p.numel() for p in parameters)
        compiled = self._entries >= WORTH_COMPILING if self._compiled is None else self._compiled
        if not (compiled and unobserved(optimizer, self) and can_step_by_rule(optimizer, parameters)):
            return False
        P = self.restricted(optimizer, parameters)
        if not (isinstance(P, DiagonalPreconditioner) and ThroughP.fits(P, parameters)):
            return False
        self._through = ThroughP(P, parameters, in_z=self.how == "adjoint")
        self._keep_gradients(parameters)
        for p in parameters:
            p.grad = None
        return True

    def _change_gradients(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        """Replace gradients by Pᵀg or PPᵀg."""
        gradients = self._keep_gradients(parameters)
        if parameters:
            P = self.restricted(optimizer, parameters)
            if (
                isinstance(P, DiagonalPreconditioner)
                and self._keeps_nothing(optimizer)
                and all(map(is_dense, parameters))
            ):
                changed = self._memory.like("gradient", gradients)
                for s, g, out in zip(P.scales, gradients, changed, strict=True):
                    torch.mul(g, s, out=out)
                    if self.how == "gram":
                        out.mul_(s)
            else:
                changed = fresh(parameters, gradients, getattr(P, self.how)(gradients))
            for p, g in zip(parameters, changed, strict=True):
                p.grad = g

    def _keeps_nothing(self, optimizer: Optimizer) -> bool:
        """Whether nobody is left with what a step was given: no hook sees it, and torch's own steps keep nothing."""
        reading = known_reading(optimizer)
        return unobserved(optimizer, self) and reading is not None and reading.translates

    def _keep_gradients(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._raw = list(zip(parameters, gradients, strict=True))
        return gradients

    def _give_back_gradients(self) -> None:
        for p, g in self._raw:
            p.grad = g
        self._raw = []

    def _with_gradient(self, optimizer: Optimizer) -> list[Tensor]:
        chosen = [p for p in self.covered(optimizer) if p.grad is not None]
        if not isinstance(self.P, DiagonalPreconditioner):
            for p in chosen:
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise ValueError(
                        f"{name_of(p, optimizer)} has a sparse gradient, which a P that is not diagonal makes dense; "
                        "use a dense gradient (nn.Embedding(sparse=False)), or a P without it"
                    )
        return chosen

    def _check_finite(self, optimizer: Optimizer) -> None:
        parameters = self.covered(optimizer)
        P = self.restricted(optimizer, parameters)
        if any(p.is_meta for p in parameters):
            return
        ones = [torch.ones_like(p) for p in parameters]
        for how in ("apply", "invert"):
            try:
                results = getattr(P, how)(ones)
            except RuntimeError as error:
                raise ValueError(f"P does not fit the optimizer's parameters: {error}") from error
            for p, x in zip(parameters, results, strict=True):
                if x.shape != p.shape or x.device != p.device:
                    raise ValueError(
                        f"P makes a tensor of shape {tuple(x.shape)} on {x.device} of {name_of(p, optimizer)}, which "
                        f"has shape {tuple(p.shape)} and is on {p.device}; build P of the model as it is now"
                    )
                if torch.promote_types(x.dtype, p.dtype) != x.dtype:
                    raise ValueError(f"P computes {name_of(p, optimizer)} in {x.dtype}; it is in {p.dtype}")
                if not bool(x.isfinite().all()):
                    raise ValueError(f"P is not finite and invertible in {p.dtype} at {name_of(p, optimizer)}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_restricted": None, "_raw": [], "_through": None, "_memory": Memory()}


class Precondition(GivenP):
    """PPᵀ before each step, on gradients that are given back after it."""

    verb = "precondition"
    how = "gram"
    order = 3, ""  # after all that is added to gradients

    def __init__(self, optimizer: Optimizer, P: Preconditioner, compiled: bool | None):
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                "LBFGS searches along a line for the loss that the gradient is of, and PPᵀ times it is of none; use "
                "reparameterize"
            )
        super().__init__(optimizer, P, compiled)

    def seen(self, optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        raise ValueError(
            "under precondition the steps minimize the loss and the penalty in metrics that differ, and rest where no "
            "objective that has a name is stationary; use reparameterize, whose optimality is measured in z"
        )

    def whole(self, optimizer: Optimizer, own: Preconditioner) -> Preconditioner:
        if not (own.is_identity or isinstance(self.P, DiagonalPreconditioner)):
            raise NotPreconditionedError(
                f"{type(optimizer).__name__} scales what precondition has made of the gradient, and with a "
                f"{type(self.P).__name__} the two don't commute: the step is of no symmetric PPᵀ. The whole of "
                "reparameterize has one"
            )
        return super().whole(optimizer, own)


class Reparameterize(GivenP):
    """z instead of p, and Pᵀ times the gradient instead of the gradient, from before each step until after it."""

    verb = "reparameterize"
    how = "adjoint"
    order = -1, ""  # all the rest is in z
    changes_variables = True

    def __init__(self, optimizer: Optimizer, P: Preconditioner, compiled: bool | None):
        self._inside: Coordinates | None = None
        self._z: list[Tensor] | None = None  # while a closure evaluates in the middle of a step
        super().__init__(optimizer, P, compiled)
        if isinstance(optimizer, torch.optim.LBFGS) and not P.constant:
            raise TypeError(f"LBFGS searches along a line on which P may not move; {_FREEZE}")

    def add_to_gradient(self, optimizer: Optimizer) -> None:
        super().add_to_gradient(optimizer)
        parameters = [p for p, _ in self._raw]
        if self._inside is None:
            if parameters and not self._through:
                P = self.restricted(optimizer, parameters)
                decays = decays_of_translation(optimizer, parameters, P) if self._keeps_nothing(optimizer) else None
                if decays is None:
                    self._inside = Coordinates(P, parameters)
                else:
                    self._add_decays(P, parameters, [decay.coupled for decay in decays])
                    z = self._memory.like("z", parameters)
                    self._inside = Coordinates(P, parameters, [decay.factor for decay in decays], z)
            return
        if list(map(id, parameters)) != list(map(id, self._inside.parameters)):
            raise RuntimeError(
                "other parameters have gradients in this evaluation of the closure than in the first one of the step; "
                "let the closure zero them instead of setting them to None"
            )
        assert self._z is not None
        self._inside.enter(self._z)

    @staticmethod
    def _add_decays(P: Preconditioner, parameters: Sequence[Tensor], decays: Sequence[float]) -> None:
        """To gradients in z, what the optimizer will not add, since it sees zero instead of z."""
        if not any(decays):
            return
        z = None if isinstance(P, DiagonalPreconditioner) else P.invert(parameters)
        for i, (p, decay) in enumerate(zip(parameters, decays, strict=True)):
            if not decay or p.grad is None or p.grad.layout != torch.strided:  # torch refuses decay of a sparse one
                continue
            if isinstance(P, DiagonalPreconditioner):
                p.grad.addcdiv_(p, P.scales[i], value=decay)
            elif z:
                p.grad.add_(z[i], alpha=decay)

    def leave(self, optimizer: Optimizer) -> None:
        inside, self._inside, self._z = self._inside, None, None
        if inside:
            inside.leave()
        super().leave(optimizer)

    def surface(self, optimizer: Optimizer) -> None:
        if not self.P.constant:
            raise RuntimeError(f"the step evaluates its closure several times, and P may not move meanwhile; {_FREEZE}")
        super().surface(optimizer)
        if self._inside:
            self._z = self._inside.surface()

    def show(self, optimizer: Optimizer) -> None:
        super().show(optimizer)
        covered = self.covered(optimizer)
        self._inside = Coordinates(self.restricted(optimizer, covered), covered)

    def seen(self, optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        ids = {id(p) for p in self.covered(optimizer)}
        places = [i for i, p in enumerate(parameters) if id(p) in ids]
        chosen, result = [parameters[i] for i in places], list(gradients)
        P = self.P.over(chosen, [name_of(p, optimizer) for p in chosen], gradients[0].dtype)
        for i, g in zip(places, P.adjoint([gradients[i] for i in places]), strict=True):
            result[i] = g
        return result

    def abandon(self, optimizer: Optimizer) -> None:
        super().abandon(optimizer)
        inside, self._inside, self._z = self._inside, None, None
        if inside:
            inside.abandon()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_inside": None, "_z": None}


_FREEZE = "give a constant one (a BatchNormPreconditioner is constant after its remove())"
