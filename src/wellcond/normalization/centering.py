"""Normalizing a layer's inputs as a change of variables of its parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wellcond.preconditioners import Preconditioner


class LayerNormalization(Preconditioner):
    """P = VD on each row [b; W] of a layer, V = [[1, −μᵀ], [0, I]], D = diag(1, s): then ĤP = [1, (H − 1μᵀ)·diag(s)].

    In the parameters: W = W_z·diag(s), b = b_z − Wμ; for a gradient g: g_W ← (g_W − g_b μᵀ)·diag(s), g_b as it is.

    Args:
        weight: (outputs, *fan-in): of a linear layer, a convolution, a projection; its rows in equal groups.
        bias: (outputs,); None for a layer without, which only μ = 0 fits.
        mean: μ, (groups, fan-in entries), of the inputs that each group of rows sees.
        scale: s, of the same shape, positive.

    Raises:
        ValueError: if the shapes don't fit, a scale is not positive, or a mean is to be taken off without a bias.

    Source: theory, section 5.2.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, mean: Tensor, scale: Tensor):
        groups, fan_in = mean.shape
        if scale.shape != mean.shape or weight[0].numel() != fan_in or weight.shape[0] % groups:
            raise ValueError(
                f"got a weight of shape {tuple(weight.shape)}, a mean of {tuple(mean.shape)} and a scale of "
                f"{tuple(scale.shape)}; expected (outputs, *fan-in) and twice (groups, fan-in entries)"
            )
        if not bool(((scale > 0) & scale.isfinite()).all()):
            raise ValueError("a scale is not positive and finite; give 1 for an input that never varies")
        if bias is None and bool(mean.any()):
            raise ValueError(
                "the layer has no bias: taking the mean off its inputs is no change of its parameters; scale only"
            )
        self.weight, self.bias, self.mean, self.scale = weight, bias, mean, scale
        self.parameters = [weight] if bias is None else [weight, bias]

    def apply(self, z: Sequence[Tensor]) -> list[Tensor]:
        W, b = self._split(z)
        W = self._rows(W) * self._each(self.scale)
        return self._joined(W, None if b is None else b - self._dot(W))

    def adjoint(self, g: Sequence[Tensor]) -> list[Tensor]:
        W, b = self._split(g)
        rows = self._rows(W)
        if b is not None:
            rows = rows - b.view(*rows.shape[:2], 1) * self._each(self.mean)
        return self._joined(rows * self._each(self.scale), b)

    def invert(self, p: Sequence[Tensor]) -> list[Tensor]:
        W, b = self._split(p)
        rows = self._rows(W)
        return self._joined(rows / self._each(self.scale), None if b is None else b + self._dot(rows))

    def over(
        self, parameters: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype | None = None
    ) -> LayerNormalization:
        own = {id(p) for p in self.parameters}
        for name, p in zip(names, parameters, strict=True):
            if id(p) not in own:
                raise ValueError(f"the normalization of one layer does not cover {name}; give the block of that layer")
        if len(parameters) != len(own):
            raise ValueError("taking the mean off a layer's inputs mixes its weight and bias; give the block of both")
        twin = LayerNormalization(self.weight, self.bias, self.mean.to(dtype), self.scale.to(dtype))
        twin.parameters = list(parameters)
        return twin

    def _split(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        by_parameter = {id(p): x for p, x in zip(self.parameters, tensors, strict=True)}
        return by_parameter[id(self.weight)], None if self.bias is None else by_parameter[id(self.bias)]

    def _joined(self, rows: Tensor, b: Tensor | None) -> list[Tensor]:
        W = rows.reshape(self.weight.shape)
        return [W if p is self.weight or b is None else b for p in self.parameters]

    def _rows(self, W: Tensor) -> Tensor:
        """(groups, outputs of a group, fan-in entries)."""
        return W.reshape(len(self.mean), -1, self.mean.shape[1])

    def _each(self, statistic: Tensor) -> Tensor:
        return statistic[:, None]

    def _dot(self, rows: Tensor) -> Tensor:
        """Wμ, (outputs,)."""
        return (rows @ self.mean[..., None]).reshape(-1)
