"""Parameters that hold z for the time of a step, while p stays where it is in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wellcond.preconditioners import Diagonal, Preconditioner


class Coordinates:
    """Parameters whose `data` is z; whatever else shares the memory of p goes on seeing p.

    Args:
        P: over exactly these parameters.
        parameters: which hold p, and z afterwards.
        memory: for z.
        decays: for a step that moves every z alike beside multiplying it by a number: these numbers, one a parameter.
            Parameters then start from zero in the place of z, which takes less memory and rounds less.
    """

    def __init__(
        self, P: Preconditioner, parameters: Sequence[Tensor], memory: Memory, decays: Sequence[float] | None = None
    ):
        self.P, self.parameters, self._decays = P, list(parameters), decays
        self._points = [p.detach() for p in parameters]
        z = memory.like("z", self._points)
        if decays is None:
            P.write("invert", self._points, z)
        else:
            for x in z:
                x.fill_(-0.0)  # which any ±0 leaves as it is
        self._start = memory.copy("start", z) if decays is None else None
        self._before: list[Tensor] | None = None  # p as the step began, where it has moved since
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
        else:
            torch._foreach_copy_(self._points, self._before)
        self._advance(z, [x.clone() for x in self._start or z])
        self.enter(self._points)
        return z

    def leave(self) -> None:
        """Bring p to where z is, p + P(z − z_before), and give it back to the parameters."""
        z = [p.detach() for p in self.parameters]
        if self._before is not None:
            torch._foreach_copy_(self._points, self._before)
        self._advance(z, self._start or z)
        self.enter(self._points)

    def abandon(self) -> None:
        """Give back p as it was."""
        if self._before is not None:
            torch._foreach_copy_(self._points, self._before)
        self.enter(self._points)

    def _advance(self, z: list[Tensor], scratch: list[Tensor]) -> None:
        """p ← p − P(z_before − z), with z_before in the scratch, or with decays z alone.

        Subtracted, so that p stays as it is, bit for bit, where z is as it was, −0 too.
        """
        diagonal = self.P.scales if isinstance(self.P, Diagonal) else None
        if self._decays is None:
            torch._foreach_sub_(scratch, z)
        for p, decay in zip(self._points, self._decays or [], strict=False):
            if decay != 1:
                p.mul_(decay)
        if diagonal is None:
            self.P.write("apply", scratch, scratch)
            torch._foreach_add_(self._points, scratch, alpha=-1 if self._decays is None else 1)
            return
        for p, s, d, x in zip(self._points, diagonal, scratch, z, strict=True):
            if self._decays is not None:
                p.addcmul_(d, s)
            else:
                p.addcmul_(d, s, value=-1)
                p.mul_(torch.ne(x, 0, out=d))  # a mask of floats: one of bools takes six times as long


class Memory:
    """Tensors that are kept from one step to the next where memory is the CPU's: there new pages take longer to get
    than to compute with."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Tensor]] = {}

    def like(self, use: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of the same shapes, types and layouts, with anything in them."""
        kept = self._kept.get(use, [])
        if len(kept) == len(tensors) and all(map(_fits, kept, tensors)):
            return kept
        made = [torch.empty_like(t) for t in tensors]
        self._kept[use] = made if all(t.device.type == "cpu" for t in made) else []
        return made

    def copy(self, use: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same with their values."""
        made = self.like(use, tensors)
        if made:
            torch._foreach_copy_(made, list(tensors))
        return made


def _fits(kept: Tensor, x: Tensor) -> bool:
    # Nor may anybody have kept it, say as the last gradient.
    alone = _uses(kept) == _ALONE
    return alone and (kept.shape, kept.dtype, kept.stride(), kept.device) == (x.shape, x.dtype, x.stride(), x.device)


def _uses(x: Tensor) -> int:
    """Of its memory."""
    return torch._C._storage_Use_Count(x.untyped_storage()._cdata)


_ALONE = _uses(torch.empty(1))
