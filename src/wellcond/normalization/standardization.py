"""The change of variables that standardizes what layers see, P = VD/q (theory, sections 5.2 and 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from wellcond.preconditioners import Preconditioner


class Moments(Protocol):
    """What is known of a layer's inputs."""

    version: int
    """Changes whenever they do."""

    def known(self) -> tuple[Tensor, Tensor, float] | None:
        """(μ, σ̃², q²): mean and variance of each feature, (c,), and the divisor of the whole; None for P = I."""


class Block:
    """A weight with the biases that are added to its products.

    W = Z/(qσ̃), then b = ζ/q − Wμ. Without a bias that is trained there is nothing to center by, and V = I.

    Args:
        weight: its place among the parameters; None where it is not trained.
        biases: theirs, none or several.
        groups: of a convolution.
        moments: of what the weight is multiplied with.
    """

    def __init__(self, weight: int | None, biases: list[int], groups: int, moments: Moments):
        self.weight, self.biases, self.groups, self.moments = weight, biases, groups, moments
        self._made: tuple[object, _Factors | None] = None, None

    def change(self, x: Sequence[Tensor], how: str) -> list[tuple[int, Tensor]]:
        """(place, new tensor) of its parameters after `how`, a method of `_Factors`."""
        first = x[self.biases[0] if self.weight is None else self.weight]
        factors = self._factors(first)
        if factors is None:
            return []
        biases = [x[b].view(self.groups, -1) for b in self.biases]
        weight = None if self.weight is None else first.reshape(self.groups, len(first) // self.groups, -1)
        weight, biases = getattr(factors, how)(weight, biases)
        changed = [(i, b.view_as(x[i])) for i, b in zip(self.biases, biases, strict=True)]
        return changed if weight is None else [(self.weight, weight.view(first.shape)), *changed]  # type: ignore[list-item]

    def _factors(self, like: Tensor) -> _Factors | None:
        key = self.moments.version, like.dtype, like.device
        if self._made[0] != key:
            known = self.moments.known()
            made = None
            if known is not None:
                mean, variance, q2 = known
                entries = 1 if self.weight is None else like[0].numel() * self.groups // len(mean)
                mean, squared = (
                    v.to(like.device, like.dtype).view(self.groups, 1, -1, 1).expand(-1, -1, -1, entries).flatten(2)
                    for v in (mean, variance * q2)
                )
                made = _Factors(mean, squared, q2)
            self._made = key, made
        return self._made[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_made": (None, None)}


class _Factors:
    """P of a block on a weight of shape (groups, outputs, fan-in) and biases of shape (groups, outputs)."""

    def __init__(self, mean: Tensor, squared: Tensor, q2: float):
        self.mean, self.squared, self.q2, self.q = mean, squared, q2, q2**0.5  # μ and q²σ̃², (groups, 1, fan-in)
        self._scale: Tensor | None = None

    @property
    def scale(self) -> Tensor:
        if self._scale is None:
            self._scale = self.squared.sqrt()
        return self._scale

    def apply(self, weight: Tensor | None, biases: list[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        weight = None if weight is None else weight / self.scale
        return weight, self._minus_mean(weight, [b / self.q for b in biases])

    def adjoint(self, weight: Tensor | None, biases: list[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        weight = None if weight is None else self._centered(weight, biases) / self.scale
        return weight, [b / self.q for b in biases]

    def invert(self, weight: Tensor | None, biases: list[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        moved = biases if weight is None or not biases else [b + self._at_mean(weight) for b in biases]
        return None if weight is None else weight * self.scale, [self.q * b for b in moved]

    def gram(self, weight: Tensor | None, biases: list[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        weight = None if weight is None else self._centered(weight, biases) / self.squared
        return weight, self._minus_mean(weight, [b / self.q2 for b in biases])

    def _centered(self, weight: Tensor, biases: list[Tensor]) -> Tensor:
        for b in biases:
            weight = torch.addcmul(weight, b[..., None], self.mean, value=-1)
        return weight

    def _minus_mean(self, weight: Tensor | None, biases: list[Tensor]) -> list[Tensor]:
        if weight is None or not biases:
            return biases
        moved = self._at_mean(weight)
        return [b - moved for b in biases]

    def _at_mean(self, weight: Tensor) -> Tensor:
        """Wμ, (groups, outputs)."""
        return torch.matmul(weight, self.mean.transpose(1, 2)).squeeze(2)


class Standardization(Preconditioner):
    """P = VD/q of each layer, and the identity on parameters of no layer.

    The matrix of a layer acts on ŵ_i = [b_i; W_i]: V = [[1, −μᵀ], [0, I]], D = diag(1, 1/σ̃).

    Args:
        parameters: what it belongs to.
        blocks: its layers, by the places of their parameters.

    Source: theory, sections 5.2 and 5.3.
    """

    def __init__(self, parameters: Sequence[Tensor], blocks: Sequence[Block]):
        self.parameters, self._blocks = list(parameters), list(blocks)

    def apply(self, z: Sequence[Tensor]) -> list[Tensor]:
        return self._through(z, "apply")

    def adjoint(self, g: Sequence[Tensor]) -> list[Tensor]:
        return self._through(g, "adjoint")

    def invert(self, p: Sequence[Tensor]) -> list[Tensor]:
        return self._through(p, "invert")

    def gram(self, g: Sequence[Tensor]) -> list[Tensor]:
        return self._through(g, "gram")

    def over(
        self, parameters: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype | None = None
    ) -> Standardization:
        """The same P on some of the parameters, as if the others were constants; it follows the same statistics."""
        ids = {id(p) for p in self.parameters}
        for name, p in zip(names, parameters, strict=True):
            if id(p) not in ids:
                raise ValueError(f"the preconditioner does not cover {name}; build it of the model that has it")
        place = {id(p): i for i, p in enumerate(parameters)}
        chosen = [place.get(id(p)) for p in self.parameters]
        blocks = []
        for block in self._blocks:
            weight = None if block.weight is None else chosen[block.weight]
            biases = [i for b in block.biases if (i := chosen[b]) is not None]
            if weight is not None or biases:
                blocks.append(Block(weight, biases, block.groups, block.moments))
        return Standardization(parameters, blocks)

    def _through(self, x: Sequence[Tensor], how: str) -> list[Tensor]:
        if len(x) != len(self.parameters):
            raise ValueError(f"got {len(x)} tensors for the {len(self.parameters)} parameters of P; give one for each")
        result = list(x)
        for block in self._blocks:
            for i, new in block.change(x, how):
                result[i] = new
        return result
