"""A given preconditioner with any optimizer: precondition its gradient, or run it in z (theory, section 5.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from wellcond.attachment import Attached, attach, attachment_of
from wellcond.preconditioners import Composed, Diagonal, Preconditioner, unwrapped_optimizer


def precondition(optimizer: Any, P: Preconditioner) -> Preconditioning:
    """Multiply the gradient by PPᵀ before each step of an optimizer: the way to use a P that moves.

    The optimizer's buffers stay in p, so P may change at every step. Parameters that P does not cover, or that have no
    gradient, are left alone, and P is then the one of the others (`P.over`). After the step `.grad` is what it was
    before: a second step without a new backward pass does not precondition twice. It survives deepcopy and pickling
    with the optimizer, and is not in its `state_dict`: call it again after building a new optimizer.

    Gradient penalties in original space (`regularize`) are added before PPᵀ, so that the objective is L + τR; every
    other penalty sees the optimizer's own P alone.

    Args:
        optimizer: any torch optimizer but LBFGS (or a wrapper that keeps one as `.optimizer`).
        P: any preconditioner over some of its parameters, such as `BatchNormPreconditioner(model)`.

    Returns:
        A handle with `remove()`.

    Raises:
        TypeError: for what is no preconditioner, or an optimizer that can't be preconditioned.
        ValueError: where P has none of the optimizer's parameters, is not finite, or does not fit them; where the
            optimizer is under another `precondition` or `reparameterize`.

    Source: theory, section 5.4.

    >>> import torch, wellcond as wc
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.1)
    >>> handle = precondition(optimizer, wc.Diagonal([w], [torch.tensor([1.0, 3.0])]))
    >>> w.grad = torch.tensor([1.0, 1.0])
    >>> optimizer.step()
    >>> w.data, w.grad
    (tensor([0.9000, 0.1000]), tensor([1., 1.]))
    """
    optimizer = unwrapped_optimizer(optimizer)
    application = _Precondition(optimizer, P)
    attach(optimizer, application)
    return Preconditioning(optimizer, application)


def reparameterize(optimizer: Any, P: Preconditioner) -> Reparameterization:
    """Run an optimizer on z ↦ L(Pz) while the model keeps p = Pz.

    Whatever the optimizer does, momentum, second moments, weight decay, clamping, it does in z; so do the penalties of
    `regularize`, in whichever order the two are called: their space="original" means the optimizer's parameters, which
    are z, and "intrinsic" those that the optimizer's own scaling makes of z. For a constant P the trajectory is that
    of the same optimizer built over z. Where z did not change p does not, bit for bit; for a `Diagonal` P a z of zero
    is a p of zero.

    Each step recomputes z = P⁻¹p. A P that moves is allowed, but the optimizer's state is not transported to the new
    coordinates: change it rarely, or use `precondition`. Parameters that P does not cover, or that have no gradient,
    are left alone, and P is then the one of the others (`P.over`). After the step `.grad` is what it was before.
    Closures, LBFGS's too, are evaluated at p. It survives deepcopy and pickling with the optimizer, and is not in its
    `state_dict`: to resume, call it again on the new optimizer; nothing else has to be saved but P.

    Args:
        optimizer: any torch optimizer (or a wrapper that keeps one as `.optimizer`).
        P: any preconditioner over some of its parameters; `P1 @ P2` composes two.

    Returns:
        A handle with `z()` and `remove()`.

    Raises:
        TypeError, ValueError: as `precondition`; for LBFGS also where P moves.

    Source: theory, section 5.4.

    >>> import torch, wellcond as wc
    >>> w = torch.nn.Parameter(torch.tensor([6.0]))
    >>> optimizer = torch.optim.Adam([w], lr=0.1)
    >>> handle = reparameterize(optimizer, wc.Diagonal([w], [torch.tensor([3.0])]))
    >>> w.grad = torch.tensor([1.0])
    >>> optimizer.step()  # Adam's first step is lr in each of its coordinates: 0.1 in z, 0.3 in p
    >>> w.data, handle.z()
    (tensor([5.7000]), [tensor([1.9000])])
    """
    optimizer = unwrapped_optimizer(optimizer)
    application = _Reparameterize(optimizer, P)
    attach(optimizer, application)
    return Reparameterization(optimizer, application)


class _Handle:
    _in_words: str

    def __init__(self, optimizer: Optimizer, application: _GivenP):
        self.optimizer, self._application = optimizer, application

    @property
    def P(self) -> Preconditioner:
        """The given preconditioner."""
        return self._application.P

    def remove(self) -> None:
        """Take it off; what it did stays done."""
        if attachment := attachment_of(self.optimizer):
            attachment.drop(self._application)

    def __repr__(self) -> str:
        attachment = attachment_of(self.optimizer)
        removed = "" if attachment and self._application in attachment.applications else "removed: "
        covered, total = len(self._application.covered(self.optimizer)), len(list(_parameters(self.optimizer)))
        what = self._in_words.format(optimizer=type(self.optimizer).__name__, P=type(self.P).__name__)
        return f"{removed}{what}\n  on {covered} of {total} parameters"


class Preconditioning(_Handle):
    """PPᵀ in force on an optimizer's gradients: what `precondition` returns.

    Attributes:
        optimizer: the optimizer.
        P: the preconditioner.
    """

    _in_words = "the gradient times PPᵀ before each step of {optimizer}, P a {P}"


class Reparameterization(_Handle):
    """An optimizer that runs in z: what `reparameterize` returns.

    Attributes:
        optimizer: the optimizer.
        P: the preconditioner.
    """

    _in_words = "{optimizer} runs in z, p = Pz, P a {P}"

    @torch.no_grad()
    def z(self) -> list[Tensor]:
        """P⁻¹p of the parameters that P covers, in the optimizer's order."""
        parameters = self._application.covered(self.optimizer)
        return _inverted(self._application.restricted(self.optimizer, parameters), [p.detach() for p in parameters])


class _GivenP(Attached):
    """A given P around the steps of an optimizer.

    Attributes:
        P: as it was given.
        verb: what was called.
    """

    verb: str

    def __init__(self, optimizer: Optimizer, P: Preconditioner):
        if not isinstance(P, Preconditioner):
            what = f"class {P.__name__}" if isinstance(P, type) else type(P).__name__
            raise TypeError(f"P is a {what}; give a preconditioner, such as BatchNormPreconditioner(model)")
        self.P = P
        self._ids: set[int] | None = None
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
        return [p for p in _parameters(optimizer) if id(p) in self._ids]

    def restricted(self, optimizer: Optimizer, parameters: list[Tensor]) -> Preconditioner:
        """P over some of the parameters that it covers."""
        key = tuple(map(id, parameters))
        if key not in self._restricted:
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
        if isinstance(other, _GivenP):
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
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._raw = list(zip(parameters, gradients, strict=True))
        if parameters:
            changed = _changed(self.restricted(optimizer, parameters), how, gradients)
            for p, g, raw in zip(parameters, changed, gradients, strict=True):
                p.grad = _like(raw, g)
        return parameters

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
        return {**self.__dict__, "_restricted": {}, "_seen": set(), "_ids": None, "_raw": []}


class _Precondition(_GivenP):
    verb = "precondition"

    def __init__(self, optimizer: Optimizer, P: Preconditioner):
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                "LBFGS searches along a line for the loss that the gradient is of, and PPᵀ times it is of none; use "
                "reparameterize"
            )
        super().__init__(optimizer, P)

    @property
    def order(self) -> tuple[int, str]:
        return 3, ""  # after all that is added to gradients

    def add_to_gradient(self, optimizer: Optimizer) -> None:
        self._change_gradients(optimizer, "gram")

    def leave(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()
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
            raise ValueError(
                f"{type(optimizer).__name__} scales what precondition has made of the gradient, and with a "
                f"{type(self.P).__name__} the two don't commute: the step is of no symmetric PPᵀ. The whole of "
                "reparameterize has one"
            )
        return super().whole(optimizer, own)

    def abandon(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()


@dataclass
class _Inside:
    """What is remembered of p while parameters hold z.

    Their `data` is another tensor then, and p stays where it is in memory: whatever shares it sees p.
    """

    P: Preconditioner
    parameters: list[Tensor]
    points: list[Tensor]  # p
    start: list[Tensor] | None  # z as the step began; None where P⁻¹p gives it again, bit for bit
    before: list[Tensor] | None = None  # p as the step began, where it has moved since

    def surface(self) -> list[Tensor]:
        """Bring p to where z is, p + P(z − z_before), and give it back to the parameters; return z."""
        z = [p.detach() for p in self.parameters]
        if self.before is None:
            self.before = [x.clone() for x in self.points]
        else:
            torch._foreach_copy_(self.points, self.before)
        self.advance(z)
        self._give_back()
        return z

    def advance(self, z: list[Tensor]) -> None:
        """p ← p − P(z_before − z), which leaves p as it is, bit for bit, where z is as it was."""
        if isinstance(self.P, Diagonal):
            for p, s, x in zip(self.points, self.P.scales, z, strict=True):
                p.addcmul_((p / s).to(x.dtype).sub_(x), s, value=-1)
                torch.where(x == 0, x, p, out=p)
        else:
            assert self.start is not None
            back = self.P.apply(torch._foreach_sub(self.start, z))
            torch._foreach_sub_(self.points, back)

    def leave(self) -> None:
        z = [p.detach() for p in self.parameters]
        if self.before is not None:
            torch._foreach_copy_(self.points, self.before)
        self.advance(z)
        self._give_back()

    def abandon(self) -> None:
        if self.before is not None:
            torch._foreach_copy_(self.points, self.before)
        self._give_back()

    def _give_back(self) -> None:
        for p, x in zip(self.parameters, self.points, strict=True):
            p.data = x


class _Reparameterize(_GivenP):
    verb = "reparameterize"

    def __init__(self, optimizer: Optimizer, P: Preconditioner):
        self._inside: _Inside | None = None
        self._z: list[Tensor] | None = None  # while a closure evaluates in the middle of a step
        super().__init__(optimizer, P)
        if isinstance(optimizer, torch.optim.LBFGS) and not P.constant:
            raise TypeError(f"LBFGS searches along a line on which P may not move; {_FREEZE}")

    changes_variables = True

    @property
    def order(self) -> tuple[int, str]:
        return -1, ""  # all the rest is in z

    def add_to_gradient(self, optimizer: Optimizer) -> None:
        if self._inside is None:
            self._enter(optimizer, self._change_gradients(optimizer, "adjoint"))
            return
        parameters = self._change_gradients(optimizer, "adjoint")
        if list(map(id, parameters)) != list(map(id, self._inside.parameters)):
            raise RuntimeError(
                "other parameters have gradients in this evaluation of the closure than in the first one of the step; "
                "let the closure zero them instead of setting them to None"
            )
        assert self._z is not None
        for p, x in zip(parameters, self._z, strict=True):
            p.data = x

    def leave(self, optimizer: Optimizer) -> None:
        self._give_back_gradients()
        inside, self._inside, self._z = self._inside, None, None
        if inside:
            inside.leave()
        self.P.stepped()

    def surface(self, optimizer: Optimizer) -> None:
        if not self.P.constant:
            raise RuntimeError(f"the step evaluates its closure several times, and P may not move meanwhile; {_FREEZE}")
        self._give_back_gradients()
        if self._inside:
            self._z = self._inside.surface()

    def show(self, optimizer: Optimizer) -> None:
        self._change_gradients(optimizer, "adjoint")
        self._enter(optimizer, self.covered(optimizer))

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
        inside, self._inside, self._z = self._inside, None, None
        if inside:
            inside.abandon()

    def _enter(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        if not parameters:
            return
        P, points = self.restricted(optimizer, parameters), [p.detach() for p in parameters]
        z = _inverted(P, points)
        start = None if isinstance(P, Diagonal) else [x.clone() for x in z]
        self._inside = _Inside(P, parameters, points, start)
        for p, x in zip(parameters, z, strict=True):
            p.data = x

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_inside": None, "_z": None}


_FREEZE = "give a constant one (a BatchNormPreconditioner is constant after its remove())"


def _inverted(P: Preconditioner, points: list[Tensor]) -> list[Tensor]:
    """P⁻¹p, in new memory."""
    made = zip(points, P.invert(points), strict=True)
    return [x.clone() if x is p else _like(p, x) for p, x in made]


def _like(given: Tensor, x: Tensor) -> Tensor:
    """x in the dtype and the memory layout of a tensor of its shape: fused kernels go by memory."""
    if x.dtype == given.dtype and (x.is_sparse or x.stride() == given.stride()):
        return x
    return x.to(given.dtype) if x.is_sparse else torch.empty_like(given).copy_(x)


def _changed(P: Preconditioner, how: str, gradients: list[Tensor]) -> Sequence[Tensor]:
    if all(g.layout == torch.strided for g in gradients):
        return getattr(P, how)(gradients)
    assert isinstance(P, Diagonal)
    return [_scaled(g, s if how == "adjoint" else s * s) for g, s in zip(gradients, P.scales, strict=True)]


def _scaled(g: Tensor, s: Tensor) -> Tensor:
    if g.layout == torch.strided:
        return s * g
    g = g.coalesce()
    rows = s.expand(g.shape)[tuple(g.indices())]
    return torch.sparse_coo_tensor(g.indices(), rows * g.values(), g.shape, is_coalesced=True)


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _name(p: Tensor, optimizer: Optimizer) -> str:
    for g, group in enumerate(optimizer.param_groups):
        for i, q in enumerate(group["params"]):
            if q is p:
                return group["param_names"][i] if "param_names" in group else f"parameter {i} of group {g}"
    return f"a parameter of shape {tuple(p.shape)}"
