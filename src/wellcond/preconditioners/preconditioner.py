"""Preconditioners: invertible changes of variables p = Pz."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Preconditioner(ABC):
    """An invertible linear P on lists of tensors in parameter order (theory, section 1).

    Attributes:
        parameters: the parameters it belongs to, in its order.
        rounding: relative accuracy to which P itself is known.
    """

    parameters: Sequence[Tensor]
    rounding: float = 0.0

    @abstractmethod
    def apply(self, z: Sequence[Tensor]) -> list[Tensor]:
        """P z."""

    @abstractmethod
    def adjoint(self, g: Sequence[Tensor]) -> list[Tensor]:
        """Pᵀ g."""

    @abstractmethod
    def invert(self, p: Sequence[Tensor]) -> list[Tensor]:
        """P⁻¹ p."""

    @abstractmethod
    def over(
        self, parameters: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype | None = None
    ) -> Preconditioner:
        """The same P restricted to these parameters, in their order, for vectors of a dtype.

        Raises:
            ValueError: if P does not cover one of them, naming it.
        """


class Diagonal(Preconditioner):
    """P = diag(scales), elementwise.

    Args:
        parameters: what it belongs to.
        scales: a tensor for each, of its shape (or expandable to it), positive.
        rounding: relative accuracy of the scales.
    """

    def __init__(self, parameters: Sequence[Tensor], scales: Sequence[Tensor], rounding: float = 0.0):
        for p, s in zip(parameters, scales, strict=True):
            if s.expand(p.shape).shape != p.shape or not bool(((s > 0) & s.isfinite()).all()):
                raise ValueError(f"scales of a parameter of shape {tuple(p.shape)} are not all positive and finite")
        self.parameters, self.scales, self.rounding = list(parameters), list(scales), rounding

    def apply(self, z: Sequence[Tensor]) -> list[Tensor]:
        return [s * x for s, x in zip(self.scales, z, strict=True)]

    def adjoint(self, g: Sequence[Tensor]) -> list[Tensor]:
        return self.apply(g)

    def invert(self, p: Sequence[Tensor]) -> list[Tensor]:
        return [x / s for s, x in zip(self.scales, p, strict=True)]

    def over(self, parameters: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype | None = None) -> Diagonal:
        position = {id(p): i for i, p in enumerate(self.parameters)}
        for name, p in zip(names, parameters, strict=True):
            if id(p) not in position:
                raise ValueError(
                    f"the preconditioner does not cover {name}: was it read off an optimizer over other parameters?"
                )
        scales = [self.scales[position[id(p)]].to(dtype) for p in parameters]
        return Diagonal(parameters, scales, self.rounding)

    @property
    def is_identity(self) -> bool:
        """Whether every scale is 1."""
        return all(bool((s == 1).all()) for s in self.scales)
