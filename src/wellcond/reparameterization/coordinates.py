"""Parameters that hold z for the time of a step, while p stays where it is in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wellcond.onepass import WORTH_COMPILING, Passes
from wellcond.preconditioners import Diagonal, Preconditioner


class Coordinates:
    """Parameters whose `data` is z; whatever else shares the memory of p goes on seeing p.

    Args:
        P: over exactly these parameters.
        parameters: which hold p, and z afterwards.
        memory: for z.
        compiled: whether the way back is compiled, for a `Diagonal` on the CPU; None for where that pays.
    """

    def __init__(self, P: Preconditioner, parameters: Sequence[Tensor], memory: Memory, compiled: bool | None = False):
        self.P, self.parameters = P, list(parameters)
        self._points = [p.detach() for p in parameters]
        self._one_pass = compiled is not False and isinstance(P, Diagonal) and self._worth(compiled)
        z = memory.like("z", self._points)
        P.write("invert", self._points, z)
        # In one pass P⁻¹p is computed again, the same bits, which is cheaper than to read it.
        self._start = None if self._one_pass else memory.copy("start", z)
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
        self._advance(z, [x.clone() for x in self._start or []])
        self.enter(self._points)
        return z

    def leave(self) -> None:
        """Bring p to where z is, p + P(z − z_before), and give it back to the parameters."""
        z = [p.detach() for p in self.parameters]
        if self._before is not None:
            torch._foreach_copy_(self._points, self._before)
        self._advance(z, self._start or [])
        self.enter(self._points)

    def abandon(self) -> None:
        """Give back p as it was."""
        if self._before is not None:
            torch._foreach_copy_(self._points, self._before)
        self.enter(self._points)

    def _advance(self, z: list[Tensor], start: list[Tensor]) -> None:
        """p ← p − P(z_before − z), which uses z_before up: subtracted, so that p stays as it is, bit for bit, where z
        is as it was, −0 too."""
        if self._start is None:
            assert isinstance(self.P, Diagonal)
            rows = [list(row) for row in zip(self._points, z, self.P.scales, strict=True)]
            passes = Passes(True)
            passes.add("reparameterization", lambda: _diagonal_advance, rows, [[0.0]] * len(rows))
            passes.run()
            return
        torch._foreach_sub_(start, z)
        if not isinstance(self.P, Diagonal):
            self.P.write("apply", start, start)
            torch._foreach_sub_(self._points, start)
            return
        for p, s, d, x in zip(self._points, self.P.scales, start, z, strict=True):
            p.addcmul_(d, s, value=-1)
            p.mul_(torch.ne(x, 0, out=d))  # a mask of floats: one of bools takes six times as long

    def _worth(self, compiled: bool | None) -> bool:
        plain = all(p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64) for p in self._points)
        return plain and (bool(compiled) or sum(p.numel() for p in self._points) >= WORTH_COMPILING)


def _diagonal_advance(tensors: Sequence[Tensor], scalars: Sequence[object]) -> list[Tensor]:
    p, z, s = tensors
    return [torch.where(z == 0, z, p - s * (p / s - z))]


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
