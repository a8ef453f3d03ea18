"""Parameters that hold z for the time of a step, while p stays where it is in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.preconditioners import Diagonal, Preconditioner
from wellcond.private_torch import foreach


class Coordinates:
    """Parameters whose `data` is z; whatever else shares the memory of p goes on seeing p.

    Args:
        P: over exactly these parameters.
        parameters: which hold p, and z afterwards.
        decays: for a step that moves every z alike beside multiplying it by a number: these numbers, one a parameter.
            Parameters then start from zero in the place of z, which takes less memory and rounds less.
        memory: for that.
    """

    def __init__(
        self,
        P: Preconditioner,
        parameters: Sequence[Tensor],
        decays: Sequence[float] | None = None,
        memory: Sequence[Tensor] = (),
    ):
        self.P, self.parameters, self._decays = P, list(parameters), decays
        self._points = [p.detach() for p in parameters]
        self._start: list[Tensor] | None = None
        self._before: list[Tensor] | None = None  # p as the step began, where it has moved since
        if decays is None:
            z = fresh(self._points, self._points, P.invert(self._points))
            self._start = [x.clone() for x in z]
        else:
            z = [x.fill_(-0.0) for x in memory]  # which any ±0 leaves as it is
        self.enter(z)

    def enter(self, z: Sequence[Tensor]) -> None:
        """Give parameters z."""
        for p, x in zip(self.parameters, z, strict=True):
            p.data = x

    def surface(self) -> list[Tensor]:
        """Give parameters p where z is now, for a time; return z."""
        z = [p.detach() for p in self.parameters]
        if self._before is None:
            self._before = [x.clone() for x in self._points]
        self._bring(z)
        return z

    def leave(self) -> None:
        """Bring p to where z is, p + P(z − z_before), and give it back to the parameters."""
        self._bring([p.detach() for p in self.parameters])

    def abandon(self) -> None:
        """Give back p as it was."""
        self._bring(None)

    def _bring(self, z: Sequence[Tensor] | None) -> None:
        """Give parameters the p of this z, or p as the step began."""
        if self._before is not None:
            foreach("copy_", self._points, self._before)
        if z is not None and self._start is None:
            self._translate(z)
        elif z is not None:
            self._move(z)
        self.enter(self._points)

    def _translate(self, moved: Sequence[Tensor]) -> None:
        """p ← decay·p + P(moved)."""
        assert self._decays is not None
        for p, decay in zip(self._points, self._decays, strict=True):
            if decay != 1:
                p.mul_(decay)
        if isinstance(self.P, Diagonal):
            for p, s, x in zip(self._points, self.P.scales, moved, strict=True):
                p.addcmul_(x, s)
        else:
            foreach("add_", self._points, self.P.apply(moved))

    def _move(self, z: Sequence[Tensor]) -> None:
        """p ← p − P(z_before − z): subtracted, so that p stays as it is, bit for bit, where z does, −0 too."""
        assert self._start is not None
        if not isinstance(self.P, Diagonal):
            moved = [before - x for before, x in zip(self._start, z, strict=True)]
            foreach("sub_", self._points, self.P.apply(moved))
            return
        for p, s, before, x in zip(self._points, self.P.scales, self._start, z, strict=True):
            back = before - x
            p.addcmul_(back, s, value=-1)
            p.mul_(torch.ne(x, 0, out=back))  # a mask of floats: one of bools takes six times as long


class Memory:
    """Tensors that are kept from one step to the next: new pages take longer to get than to compute with."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Tensor]] = {}

    def like(self, use: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of the same shapes, types and layouts, with anything in them."""
        kept = self._kept.get(use, [])
        if list(map(_kind, kept)) != list(map(_kind, tensors)):
            kept = [torch.empty_like(x) for x in tensors]
            self._kept[use] = kept if all(x.is_cpu for x in kept) else []  # a GPU's allocator keeps pages itself
        return kept


def _kind(x: Tensor) -> object:
    return x.shape, x.stride(), x.dtype, x.device


def fresh(like: Sequence[Tensor], given: Sequence[Tensor], made: Sequence[Tensor]) -> list[Tensor]:
    """What P made of tensors that were given, in memory of its own, and of the dtype and layout of others.

    Fused steps go over both at once, and a P may return what it was given.
    """
    return [
        y.to(x.dtype)
        if y.layout != torch.strided or (y.stride() == x.stride() and y.data_ptr() != g.data_ptr())
        else torch.empty_like(x).copy_(y)
        for x, g, y in zip(like, given, made, strict=True)
    ]


def decays_of_translation(optimizer: Optimizer, parameters: Sequence[Tensor], P: Preconditioner) -> list[float] | None:
    """The factor 1 − lr·τ of each parameter, for a step that is p ← (1 − lr·τ)p + d with a d that p does not enter.

    In z the factor is the same (theory, section 4.2) where P is diagonal, or one factor is that of all. None for a step
    that is no such translation.
    """
    factors: dict[int, float] = {}
    may_skip = getattr(optimizer, "found_inf", None) is not None  # what a fused step does where a GradScaler overflowed
    for group in optimizer.param_groups:
        decay, rate = group.get("weight_decay", 0.0), group["lr"]
        if decay and (isinstance(rate, Tensor) or not group.get("decoupled_weight_decay") or may_skip):
            return None
        factors.update(dict.fromkeys(map(id, group["params"]), 1 - rate * decay if decay else 1.0))
    chosen = [factors[id(p)] for p in parameters]
    return chosen if isinstance(P, Diagonal) or len(set(chosen)) == 1 else None
