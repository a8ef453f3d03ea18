"""Parameters that hold z for the time of a step, while p stays where it is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.preconditioners import DiagonalPreconditioner, Preconditioner
from wellcond.private_torch import foreach


class Coordinates:
    """Parameters whose `data` is z; whatever else shares the memory of p goes on seeing p.

    Args:
        P: over exactly these parameters.
        parameters: which hold p, and z afterwards.
        factors: for a step that moves every z alike beside multiplying it by a number: these numbers, one a parameter.
            Parameters then start from zero instead of z, which takes less memory and rounds less.
        memory: for that.
    """

    def __init__(
        self,
        P: Preconditioner,
        parameters: Sequence[Tensor],
        factors: Sequence[float] | None = None,
        memory: Sequence[Tensor] = (),
    ):
        self.P, self.parameters, self._factors = P, list(parameters), factors
        self._points = [p.detach() for p in parameters]
        self._start: list[Tensor] | None = None
        self._before: list[Tensor] | None = None  # p as the step began, where it has moved since
        if factors is None:
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
        """p ← factor·p + P(moved)."""
        assert self._factors is not None
        for p, factor in zip(self._points, self._factors, strict=True):
            if factor != 1:
                p.mul_(factor)
        if isinstance(self.P, DiagonalPreconditioner):
            for p, s, x in zip(self._points, self.P.scales, moved, strict=True):
                p.addcmul_(x, s)
        else:
            foreach("add_", self._points, self.P.apply(moved))

    def _move(self, z: Sequence[Tensor]) -> None:
        """p ← p − P(z_before − z): subtracted, so that p stays as it is, bit for bit, where z does, −0 too."""
        assert self._start is not None
        if not isinstance(self.P, DiagonalPreconditioner):
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


class Decay(NamedTuple):
    """What a weight decay does to a parameter in a step: multiplies it, and adds a multiple of it to the gradient."""

    factor: float = 1.0
    coupled: float = 0.0


def decays_of_translation(optimizer: Optimizer, parameters: Sequence[Tensor], P: Preconditioner) -> list[Decay] | None:
    """The decay of each parameter in z, for a step that is p ← factor·p + d, where p enters d by the gradient alone.

    The factor 1 − lr·τ is the same in z (theory, section 4.2) where P is diagonal, or one factor is that of all. None
    for a step that is no such translation.
    """
    decays: dict[int, Decay] = {}
    scaled = getattr(optimizer, "found_inf", None) is not None  # by a GradScaler: a fused step may be skipped
    for group in optimizer.param_groups:
        tau, rate, decay = group.get("weight_decay", 0.0), group["lr"], Decay()
        if tau and scaled:
            return None
        if tau and not group.get("decoupled_weight_decay"):
            decay = Decay(coupled=-tau if group.get("maximize") else tau)
        elif tau:
            if isinstance(rate, Tensor):
                return None
            decay = Decay(1 - rate * tau)
        decays.update(dict.fromkeys(map(id, group["params"]), decay))
    chosen = [decays[id(p)] for p in parameters]
    return chosen if isinstance(P, DiagonalPreconditioner) or len({decay.factor for decay in chosen}) == 1 else None
