"""The change of variables that standardizes what layers see, P = VD/q (theory, sections 5.2 and 5.3)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from wellcond.preconditioners.preconditioner import Preconditioner, Rowwise


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

    def change(self, how: str, x: Sequence[Tensor], out: Sequence[Tensor] | None) -> dict[int, Tensor]:
        """Its parameters among x, changed by `how`, a method of `_Factors`, by their places; none of them for P = I.

        Args:
            how: which of P's maps.
            x: of all parameters.
            out: memory for what is made, used where it is contiguous, which may be x's; None for new memory, and a
                graph where x has one.
        """
        first = x[self.biases[0] if self.weight is None else self.weight]
        factors = self._factors(first)
        if factors is None:
            return {}

        def seen(i: int, *shape: int) -> tuple[Tensor, Tensor | None]:
            memory = None if out is None or not out[i].is_contiguous() else out[i].view(self.groups, *shape)
            return x[i].reshape(self.groups, *shape), memory

        weight = (None, None) if self.weight is None else seen(self.weight, len(first) // self.groups, -1)
        W, biases = getattr(factors, how)(*weight, [seen(b, -1) for b in self.biases])
        made = {i: b.view(x[i].shape) for i, b in zip(self.biases, biases, strict=True)}
        return made if self.weight is None else made | {self.weight: W.view(first.shape)}

    def rowwise(self, parameters: Sequence[Tensor]) -> list[Rowwise] | None:
        """Its part of `Preconditioner.rowwise`."""
        first = parameters[self.biases[0] if self.weight is None else self.weight]
        factors = self._factors(first)
        if factors is None:
            return []
        if self.weight is None:
            return [Rowwise(b, None, torch.full_like(parameters[b], 1 / factors.q)) for b in self.biases]
        if len(self.biases) > 1:
            return None
        if not self.biases:
            return [Rowwise(self.weight, None, factors.inverse)]
        return [Rowwise(self.weight, self.biases[0], factors.inverse, factors.mean, factors.q)]

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


_Out = Tensor | None


class _Factors:
    """P of a block on a weight w of shape (groups, outputs, fan-in) and biases of shape (groups, outputs).

    Its maps take each with the memory for the result, which may be its own, or None for new memory.
    """

    def __init__(self, mean: Tensor, squared: Tensor, q2: float):
        self.mean, self.squared, self.q2, self.q = mean, squared, q2, q2**0.5  # μ and q²σ̃², (groups, 1, fan-in)

    @functools.cached_property
    def scale(self) -> Tensor:
        """qσ̃."""
        return self.squared.sqrt()

    @functools.cached_property
    def inverse(self) -> Tensor:
        return self.squared.rsqrt()

    @functools.cached_property
    def inverse_squared(self) -> Tensor:
        return self.squared.reciprocal()

    def apply(self, w: _Out, out: _Out, biases: list[tuple[Tensor, _Out]]) -> tuple[_Out, list[Tensor]]:
        W = None if w is None else torch.mul(w, self.inverse, out=out)
        return W, self._uncentered(1 / self.q, W, biases)

    def adjoint(self, w: _Out, out: _Out, biases: list[tuple[Tensor, _Out]]) -> tuple[_Out, list[Tensor]]:
        W = self._centered(self.inverse, w, out, biases)
        return W, [torch.mul(b, 1 / self.q, out=o) for b, o in biases]

    def gram(self, w: _Out, out: _Out, biases: list[tuple[Tensor, _Out]]) -> tuple[_Out, list[Tensor]]:
        W = self._centered(self.inverse_squared, w, out, biases)
        return W, self._uncentered(1 / self.q2, W, biases)

    def invert(self, w: _Out, out: _Out, biases: list[tuple[Tensor, _Out]]) -> tuple[_Out, list[Tensor]]:
        if w is None:
            return None, [torch.mul(b, self.q, out=o) for b, o in biases]
        moved = self._at_mean(w) if biases else w
        return torch.mul(w, self.scale, out=out), [torch.add(b, moved, out=o).mul_(self.q) for b, o in biases]

    def _centered(self, factor: Tensor, w: _Out, out: _Out, biases: list[tuple[Tensor, _Out]]) -> _Out:
        """(w − bμᵀ)·factor."""
        if w is None:
            return None
        for b, _ in biases:
            w = torch.addcmul(w, b[..., None], self.mean, value=-1, out=out)
        return torch.mul(w, factor, out=out)

    def _uncentered(self, factor: float, W: _Out, biases: list[tuple[Tensor, _Out]]) -> list[Tensor]:
        """b·factor − Wμ."""
        made = [torch.mul(b, factor, out=o) for b, o in biases]
        if W is None or not biases:
            return made
        moved = self._at_mean(W)
        return [b.sub_(moved) for b in made]

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
        return self._changed("apply", z)

    def adjoint(self, g: Sequence[Tensor]) -> list[Tensor]:
        return self._changed("adjoint", g)

    def invert(self, p: Sequence[Tensor]) -> list[Tensor]:
        return self._changed("invert", p)

    def gram(self, g: Sequence[Tensor]) -> list[Tensor]:
        return self._changed("gram", g)

    def write(self, how: str, x: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        made = self._blockwise(how, x, out)
        for i, y in enumerate(out):
            if i not in made:
                y.copy_(x[i])
            elif not y.is_contiguous():
                y.copy_(made[i])

    def rowwise(self) -> list[Rowwise] | None:
        made = [block.rowwise(self.parameters) for block in self._blocks]
        return None if any(m is None for m in made) else [r for m in made for r in m or []]

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

    def _changed(self, how: str, x: Sequence[Tensor]) -> list[Tensor]:
        made = self._blockwise(how, x, None)
        return [made[i] if i in made else y.clone() for i, y in enumerate(x)]

    def _blockwise(self, how: str, x: Sequence[Tensor], out: Sequence[Tensor] | None) -> dict[int, Tensor]:
        if len(x) != len(self.parameters):
            raise ValueError(f"got {len(x)} tensors for the {len(self.parameters)} parameters of P; give one for each")
        made: dict[int, Tensor] = {}
        for block in self._blocks:
            made |= block.change(how, x, out)
        return made
