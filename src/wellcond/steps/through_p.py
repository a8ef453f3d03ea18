"""A step of an optimizer through a diagonal P, taken by its rule in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from wellcond.preconditioners import DiagonalPreconditioner
from wellcond.steps.by_rule import Decay, Inside, Move, plain


class ThroughP(Inside):
    """In z, or with PPᵀ of the gradient.

    Args:
        P: over exactly the parameters that are stepped.
        parameters: they.
        in_z: whether the step is in z.
    """

    def __init__(self, P: DiagonalPreconditioner, parameters: Sequence[Tensor], in_z: bool):
        self._scales = dict(zip(map(id, parameters), P.scales, strict=True))
        self.around = self.key = _in_z if in_z else _with_gram

    @staticmethod
    def fits(P: DiagonalPreconditioner, parameters: Sequence[Tensor]) -> bool:
        """Whether P has a scale for each entry, in memory as the parameters are; on the CPU, where it was measured."""
        return all(
            p.is_cpu and s.shape == p.shape and s.stride() == p.stride()
            for p, s in zip(parameters, P.scales, strict=True)
        )

    def takes(self, p: Tensor) -> bool:
        return id(p) in self._scales

    def tensors(self, p: Tensor) -> list[Tensor]:
        return [self._scales[id(p)]]


def _in_z(p: Tensor, g: Tensor, tensors: Sequence[Tensor], s: Sequence[Any], decayed: Decay, move: Move) -> Tensor:
    (scale,) = tensors
    _, of_z = decayed(p / scale, scale * g)
    kept, _ = decayed(p, g)  # a decoupled decay is the same in z
    return kept.add_(scale * move(of_z)[0])


def _with_gram(p: Tensor, g: Tensor, tensors: Sequence[Tensor], s: Sequence[Any], decayed: Decay, move: Move) -> Tensor:
    (scale,) = tensors
    return plain(p, scale * scale * g, (), s, decayed, move)
