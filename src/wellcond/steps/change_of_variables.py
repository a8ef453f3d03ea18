"""A given P around the steps of an optimizer: on its gradients, or on its parameters too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from wellcond.hooks import Attached, unobserved
from wellcond.preconditioners import Composed, Diagonal, NotPreconditionedError, Preconditioner
from wellcond.steps.coordinates import Coordinates, Memory
from wellcond.steps.fused import FusedStep, fused_step
from wellcond.steps.translations import decays_of_translations


class GivenP(Attached):
    """A given P around the steps of an optimizer.

    Attributes:
        P: as it was given.
        verb: what was called.
    """

    verb: str

    def __init__(self, optimizer: Optimizer, P: Preconditioner, compiled: bool | None):
        if compiled not in (None, True, False):
            raise TypeError(f"compile is {compiled!r}; give True, False or None")
        if not isinstance(P, Preconditioner):
            what = f"class {P.__name__}" if isinstance(P, type) else type(P).__name__
            raise TypeError(f"P is a {what}; give a preconditioner, such as BatchNormPreconditioner(model)")
        self.P, self._compiled = P, compiled
        self._fused: FusedStep | None = None
        self._ids: set[int] | None = None
        self._memory = Memory()
        self._raw: list[tuple[Tensor, Tensor]] = []  # parameters and their gradients as they were
        self._restricted: dict[tuple[int, ...], Preconditioner] = {}
        self._seen: set[int] = set()
        self.check_parameters(optimizer)
        if not self.covered(optimizer):
            raise ValueError(
                f"the optimizer has none of the {len(P.parameters)} parameters of P; build both of the same model"
            )
        self._check_finite(optimizer)

    def covered(self, optimizer: Optimizer) -> list[Tensor]:
        """The optimizer's parameters that P covers, in its order."""
        if self._ids is None:
            self._ids = {id(p) for p in self.P.parameters}
        return [p for p in parameters_of(optimizer) if id(p) in self._ids]

    def restricted(self, optimizer: Optimizer, parameters: list[Tensor]) -> Preconditioner:
        """P over some of the parameters that it covers."""
        key = tuple(map(id, parameters))
        if key not in self._restricted:
            if len(self._restricted) == 8:  # gradients come and go
                self._restricted.clear()
            dtypes = {torch.promote_types(p.dtype, torch.float32) for p in parameters}
            names = [_name(p, optimizer) for p in parameters]
            self._restricted[key] = self.P.over(parameters, names, dtypes.pop() if len(dtypes) == 1 else None)
        return self._restricted[key]

    def check_parameters(self, optimizer: Optimizer) -> bool:
        new = [p for p in self.covered(optimizer) if id(p) not in self._seen]
        self._seen.update(map(id, new))
        for p in new:
            if is_lazy(p):
                raise ValueError(f"{_name(p, optimizer)} is not initialized; run the lazy model once on a batch first")
            if p.layout != torch.strided or not p.is_floating_point():
                kind = f"sparse ({p.layout})" if p.layout != torch.strided else str(p.dtype)
                raise ValueError(f"{_name(p, optimizer)} is {kind}; P is for dense real parameters, leave it out")
        if new and any(group.get("differentiable") for group in optimizer.param_groups):
            raise ValueError("differentiable=True: no gradient goes through a change of variables; give False")
        return bool(new)

    def refuse_beside(self, other: Attached, optimizer: Optimizer) -> None:
        if isinstance(other, GivenP):
            raise ValueError(
                f"the optimizer is under {other.verb} already; remove() that first, or give {self.verb} the product of "
                "the two preconditioners, P1 @ P2"
            )

    def whole(self, optimizer: Optimizer, own: Preconditioner) -> Preconditioner:
        covered = self.covered(optimizer)
        given = self.P.over(covered, [_name(p, optimizer) for p in covered], torch.float64)
        if isinstance(given, Diagonal) and isinstance(own, Diagonal):
            return (given @ own).over(own.parameters, [_name(p, optimizer) for p in own.parameters])
        return Composed(given, own, own.parameters)

    def _change_gradients(self, optimizer: Optimizer, how: str) -> list[Tensor]:
        """Put Pᵀg ("adjoint") or PPᵀg ("gram") in the place of gradients; the parameters that have one."""
        parameters = self._with_gradient(optimizer)
        gradients = self._keep_gradients(parameters)
        if not parameters:
            return []
        P = self.restricted(optimizer, parameters)
        if all(g.layout == torch.strided for g in gradients):
            changed = self._memory.like("gradient", gradients)
            P.write(how, gradients, changed)
        else:
            assert isinstance(P, Diagonal)
            changed = [_scaled(g, s if how == "adjoint" else s * s) for g, s in zip(gradients, P.scales, strict=True)]
        for p, g in zip(parameters, changed, strict=True):
            p.grad = g.detach()  # whoever keeps it is seen to use the memory
        return parameters

    def _take_over(self, optimizer: Optimizer, how: str) -> bool:
        """Whether the step is ours, taken in `leave`: the optimizer is shown no gradients, and so it takes none."""
        parameters = self._with_gradient(optimizer) if unobserved(optimizer, self) else []
        if parameters:
            P = self.restricted(optimizer, parameters)
            self._fused = fused_step(optimizer, P, parameters, how == "gram", self._compiled)
        if self._fused is None:
            return False
        self._keep_gradients(self._fused.parameters)
        for p in self._fused.parameters:
            p.grad = None
        return True

    def _take_fused(self) -> None:
        fused, self._fused = self._fused, None
        if fused:
            fused.take()

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
        if not isinstance(self.P, Diagonal):
            for p in chosen:
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise ValueError(
                        f"{_name(p, optimizer)} has a sparse gradient, which a P that is not diagonal makes dense; use "
                        "a dense gradient (nn.Embedding(sparse=False)), or a P without it"
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
                        f"P makes a tensor of shape {tuple(x.shape)} on {x.device} of {_name(p, optimizer)}, which has "
                        f"shape {tuple(p.shape)} and is on {p.device}; build P of the model as it is now"
                    )
                if torch.promote_types(x.dtype, p.dtype) != x.dtype:
                    raise ValueError(f"P computes {_name(p, optimizer)} in {x.dtype}; it is in {p.dtype}")
                if not bool(x.isfinite().all()):
                    raise ValueError(f"P is not finite and invertible in {p.dtype} at {_name(p, optimizer)}")

    def __getstate__(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {
            "_restricted": {},
            "_seen": set(),
            "_ids": None,
            "_raw": [],
            "_memory": Memory(),
            "_fused": None,
        }
        return {**self.__dict__, **fresh}


class Precondition(GivenP):
    """PPᵀ before each step, on gradients that are given back after it."""

    verb = "precondition"

    def __init__(self, optimizer: Optimizer, P: Preconditioner, compiled: bool | None):
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                "LBFGS searches along a line for the loss that the gradient is of, and PPᵀ times it is of none; use "
                "reparameterize"
            )
        super().__init__(optimizer, P, compiled)

    @property
    def order(self) -> tuple[int, str]:
        return 3, ""  # after all that is added to gradients

    def add_to_gradient(self, optimizer: Optimizer) -> None:
        if not self._take_over(optimizer, "gram"):
            self._change_gradients(optimizer, "gram")

    def leave(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()
        self._take_fused()
        self.P.stepped()

    def surface(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()

    def show(self, optimizer: Optimizer) -> None:
        self._change_gradients(optimizer, "gram")

    def seen(self, optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        raise ValueError(
            "under precondition the steps minimize the loss and the penalty in metrics that differ, and rest where no "
            "objective that has a name is stationary; use reparameterize, whose optimality is measured in z"
        )

    def whole(self, optimizer: Optimizer, own: Preconditioner) -> Preconditioner:
        if not (own.is_identity or isinstance(self.P, Diagonal)):
            raise NotPreconditionedError(
                f"{type(optimizer).__name__} scales what precondition has made of the gradient, and with a "
                f"{type(self.P).__name__} the two don't commute: the step is of no symmetric PPᵀ. The whole of "
                "reparameterize has one"
            )
        return super().whole(optimizer, own)

    def abandon(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()
        self._fused = None


class Reparameterize(GivenP):
    """z in the place of p, and Pᵀ of the gradient in that of the gradient, from before each step until after it."""

    verb = "reparameterize"

    def __init__(self, optimizer: Optimizer, P: Preconditioner, compiled: bool | None):
        self._inside: Coordinates | None = None
        self._z: list[Tensor] | None = None  # while a closure evaluates in the middle of a step
        super().__init__(optimizer, P, compiled)
        if isinstance(optimizer, torch.optim.LBFGS) and not P.constant:
            raise TypeError(f"LBFGS searches along a line on which P may not move; {_FREEZE}")

    changes_variables = True

    @property
    def order(self) -> tuple[int, str]:
        return -1, ""  # all the rest is in z

    def add_to_gradient(self, optimizer: Optimizer) -> None:
        if self._inside is None:
            if self._take_over(optimizer, "adjoint"):
                return
            parameters = self._change_gradients(optimizer, "adjoint")
            if parameters:
                P = self.restricted(optimizer, parameters)
                decays = decays_of_translations(optimizer, parameters, P) if unobserved(optimizer, self) else None
                self._inside = Coordinates(P, parameters, self._memory, decays)
            return
        parameters = self._change_gradients(optimizer, "adjoint")
        if list(map(id, parameters)) != list(map(id, self._inside.parameters)):
            raise RuntimeError(
                "other parameters have gradients in this evaluation of the closure than in the first one of the step; "
                "let the closure zero them instead of setting them to None"
            )
        assert self._z is not None
        self._inside.enter(self._z)

    def leave(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()
        inside, self._inside, self._z = self._inside, None, None
        if inside:
            inside.leave()
        self._take_fused()
        self.P.stepped()

    def surface(self, optimizer: Optimizer) -> None:
        if not self.P.constant:
            raise RuntimeError(f"the step evaluates its closure several times, and P may not move meanwhile; {_FREEZE}")
        self._give_back_gradients()
        if self._inside:
            self._z = self._inside.surface()

    def show(self, optimizer: Optimizer) -> None:
        self._change_gradients(optimizer, "adjoint")
        covered = self.covered(optimizer)
        self._inside = Coordinates(self.restricted(optimizer, covered), covered, Memory())

    def seen(self, optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        ids = {id(p) for p in self.covered(optimizer)}
        places = [i for i, p in enumerate(parameters) if id(p) in ids]
        chosen, result = [parameters[i] for i in places], list(gradients)
        P = self.P.over(chosen, [_name(p, optimizer) for p in chosen], gradients[0].dtype)
        for i, g in zip(places, P.adjoint([gradients[i] for i in places]), strict=True):
            result[i] = g
        return result

    def abandon(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()
        inside, self._inside, self._z, self._fused = self._inside, None, None, None
        if inside:
            inside.abandon()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_inside": None, "_z": None}


_FREEZE = "give a constant one (a BatchNormPreconditioner is constant after its remove())"


def _scaled(g: Tensor, s: Tensor) -> Tensor:
    if g.layout == torch.strided:
        return s * g
    g = g.coalesce()
    rows = s.expand(g.shape)[tuple(g.indices())]
    return torch.sparse_coo_tensor(g.indices(), rows * g.values(), g.shape, is_coalesced=True)


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """The optimizer's parameters, in its order."""
    return (p for group in optimizer.param_groups for p in group["params"])


def _name(p: Tensor, optimizer: Optimizer) -> str:
    for g, group in enumerate(optimizer.param_groups):
        for i, q in enumerate(group["params"]):
            if q is p:
                return group["param_names"][i] if "param_names" in group else f"parameter {i} of group {g}"
    return f"a parameter of shape {tuple(p.shape)}"
