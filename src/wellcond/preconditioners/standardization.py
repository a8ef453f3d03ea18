"""The change of variables that standardizes what layers see, P = VD/q (theory, sections 5.2 and 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from wellcond.preconditioners.preconditioner import Preconditioner


class Moments(Protocol):
    """What is known of a layer's inputs."""

    version: int
    """Changes whenever they do."""

    def known(self, centered: bool) -> tuple[Tensor, Tensor, float] | None:
        """(μ, σ̃², q²): mean and squared scale of each feature, (c,), and the divisor of the whole; None for P = I.

        The scale is of the feature less its mean if `centered`, else of the feature itself.
        """


class Block:
    """A weight with the biases that are added to its products.

    W = Z/(qσ̃), then b = ζ/q − Wμ. Without a bias that is trained there is nothing to center by: V = I, and the scale is
    of what is not centered (theory, section 5.2).

    Args:
        weight: its place among the parameters; None where it is not trained.
        biases: theirs, none or several.
        groups: of a convolution.
        moments: of what the weight is multiplied with.
    """

    def __init__(self, weight: int | None, biases: list[int], groups: int, moments: Moments):
        self.weight, self.biases, self.groups, self.moments = weight, biases, groups, moments
        self._made: tuple[object, _Factors | None] = None, None

    def change(self, how: str, x: Sequence[Tensor]) -> dict[int, Tensor]:
        """Its parameters among x, changed by `how`, a method of `_Factors`, by their places; none of them for P = I."""
        first = x[self.biases[0] if self.weight is None else self.weight]
        factors = self._factors(first)
        if factors is None:
            return {}
        w = None if self.weight is None else first.reshape(self.groups, len(first) // self.groups, -1)
        W, biases = getattr(factors, how)(w, [x[b].reshape(self.groups, -1) for b in self.biases])
        made = {i: b.view(x[i].shape) for i, b in zip(self.biases, biases, strict=True)}
        return made if self.weight is None else made | {self.weight: W.view(first.shape)}

    def _factors(self, like: Tensor) -> _Factors | None:
        key = self.moments.version, like.dtype, like.device
        if self._made[0] != key:
            known = self.moments.known(bool(self.biases))
            made = None
            if known is not None:
                mean, variance, q2 = known
                fan_in = len(mean) if self.weight is None else like.shape[1:].numel() * self.groups
                mean, squared = (self._at_entries(v.to(like.device, like.dtype), fan_in) for v in (mean, variance * q2))
                made = _Factors(mean, squared, q2)
            self._made = key, made
        return self._made[1]

    def _at_entries(self, v: Tensor, fan_in: int) -> Tensor:
        """A value a feature as one an entry of a row of the weight, (groups, 1, fan-in): a convolution has several."""
        if len(v) == fan_in:
            return v.view(self.groups, 1, -1)
        return v.view(self.groups, 1, -1, 1).expand(-1, -1, -1, fan_in // len(v)).flatten(2)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_made": (None, None)}


_Weight = Tensor | None
_Changed = tuple[_Weight, list[Tensor]]


class _Factors:
    """P of a block on a weight w of shape (groups, outputs, fan-in) and biases of shape (groups, outputs)."""

    def __init__(self, mean: Tensor, squared: Tensor, q2: float):
        self.mean, self.q2, self.q = mean, q2, q2**0.5
        # qσ̃ and its inverses, (groups, 1, fan-in) as μ is.
        self.scale, self.inverse, self.inverse_squared = squared.sqrt(), squared.rsqrt(), squared.reciprocal()

    def apply(self, w: _Weight, biases: list[Tensor]) -> _Changed:
        W = None if w is None else w * self.inverse
        return W, self._uncentered(1 / self.q, W, biases)

    def adjoint(self, w: _Weight, biases: list[Tensor]) -> _Changed:
        return self._centered(self.inverse, w, biases), [b * (1 / self.q) for b in biases]

    def gram(self, w: _Weight, biases: list[Tensor]) -> _Changed:
        W = self._centered(self.inverse_squared, w, biases)
        return W, self._uncentered(1 / self.q2, W, biases)

    def invert(self, w: _Weight, biases: list[Tensor]) -> _Changed:
        if w is None:
            return None, [b * self.q for b in biases]
        moved = self._at_mean(w) if biases else 0.0
        return w * self.scale, [(b + moved) * self.q for b in biases]

    def _centered(self, factor: Tensor, w: _Weight, biases: list[Tensor]) -> _Weight:
        """(w − bμᵀ)·factor."""
        if w is None:
            return None
        for b in biases:
            w = torch.addcmul(w, b[..., None], self.mean, value=-1)
        return w.mul_(factor) if biases else w * factor

    def _uncentered(self, factor: float, W: _Weight, biases: list[Tensor]) -> list[Tensor]:
        """b·factor − Wμ."""
        if W is None or not biases:
            return [b * factor for b in biases]
        moved = self._at_mean(W)
        return [b * factor - moved for b in biases]

    def _at_mean(self, W: Tensor) -> Tensor:
        """Wμ, (groups, outputs)."""
        if len(W) == 1:
            return torch.mv(W[0], self.mean[0, 0])[None]
        return torch.matmul(W, self.mean.transpose(1, 2)).squeeze(2)


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
        return self._change("apply", z)

    def adjoint(self, g: Sequence[Tensor]) -> list[Tensor]:
        return self._change("adjoint", g)

    def invert(self, p: Sequence[Tensor]) -> list[Tensor]:
        return self._change("invert", p)

    def gram(self, g: Sequence[Tensor]) -> list[Tensor]:
        return self._change("gram", g)

    def _change(self, how: str, x: Sequence[Tensor]) -> list[Tensor]:
        if len(x) != len(self.parameters):
            raise ValueError(f"got {len(x)} tensors for the {len(self.parameters)} parameters of P; give one for each")
        made: dict[int, Tensor] = {}
        for block in self._blocks:
            made |= block.change(how, x)
        return [made[i] if i in made else y.clone() for i, y in enumerate(x)]

    def over(
        self, parameters: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype | None = None
    ) -> Standardization:
        """The same P on some of the parameters, as if the others were constants; it follows the same statistics."""
        message = "the preconditioner does not cover {}; build it of the model that has it"
        self.refuse_uncovered(parameters, names, message)
        place = {id(p): i for i, p in enumerate(parameters)}
        chosen = [place.get(id(p)) for p in self.parameters]
        blocks = []
        for block in self._blocks:
            weight = None if block.weight is None else chosen[block.weight]
            biases = [i for b in block.biases if (i := chosen[b]) is not None]
            if weight is not None or biases:
                blocks.append(Block(weight, biases, block.groups, block.moments))
        return Standardization(parameters, blocks)
