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
        compiled: whether the way back is compiled, for a `Diagonal` on the CPU; None for where that pays.
    """

    def __init__(self, P: Preconditioner, parameters: Sequence[Tensor], compiled: bool | None = False):
        self.P, self.parameters = P, list(parameters)
        self._points = [p.detach() for p in parameters]
        self._one_pass = compiled is not False and isinstance(P, Diagonal) and self._worth(compiled)
        z = inverted(P, self._points)
        # In one pass P⁻¹p is computed again, the same bits, which is cheaper than to read it.
        self._start = None if self._one_pass else [x.clone() for x in z]
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
        self._advance(z)
        self.enter(self._points)
        return z

    def leave(self) -> None:
        """Bring p to where z is, p + P(z − z_before), and give it back to the parameters."""
        z = [p.detach() for p in self.parameters]
        if self._before is not None:
            torch._foreach_copy_(self._points, self._before)
        self._advance(z)
        self.enter(self._points)

    def abandon(self) -> None:
        """Give back p as it was."""
        if self._before is not None:
            torch._foreach_copy_(self._points, self._before)
        self.enter(self._points)

    def _advance(self, z: list[Tensor]) -> None:
        """p ← p − P(z_before − z): subtracted, so that p stays as it is, bit for bit, where z is as it was, −0 too."""
        if self._start is None:
            assert isinstance(self.P, Diagonal)
            rows = [list(row) for row in zip(self._points, z, self.P.scales, strict=True)]
            passes = Passes(True)
            passes.add("reparameterization", lambda: _diagonal_advance, rows, [[0.0]] * len(rows))
            passes.run()
            return
        back = torch._foreach_sub(self._start, z)
        if not isinstance(self.P, Diagonal):
            torch._foreach_sub_(self._points, self.P.apply(back))
            return
        for p, s, d, x in zip(self._points, self.P.scales, back, z, strict=True):
            p.addcmul_(d, s, value=-1)
            torch.where(x == 0, x, p, out=p)

    def _worth(self, compiled: bool | None) -> bool:
        plain = all(p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64) for p in self._points)
        return plain and (bool(compiled) or sum(p.numel() for p in self._points) >= WORTH_COMPILING)


def _diagonal_advance(tensors: Sequence[Tensor], scalars: Sequence[object]) -> list[Tensor]:
    p, z, s = tensors
    return [torch.where(z == 0, z, p - s * (p / s - z))]


def inverted(P: Preconditioner, points: list[Tensor]) -> list[Tensor]:
    """P⁻¹p, in new memory."""
    made = zip(points, P.invert(points), strict=True)
    return [x.clone() if x is p else laid_out(p, x) for p, x in made]


def laid_out(given: Tensor, x: Tensor) -> Tensor:
    """x in the dtype and the memory layout of a tensor of its shape: fused kernels go by memory."""
    if x.dtype == given.dtype and (x.is_sparse or x.stride() == given.stride()):
        return x
    return x.to(given.dtype) if x.is_sparse else torch.empty_like(given).copy_(x)
