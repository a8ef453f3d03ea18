"""Normalizing a layer's inputs as a change of variables of its parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wellcond.preconditioners import Block, Standardization


class LayerNormalization(Standardization):
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
        self.mean, self.scale = mean, scale
        biases = [] if bias is None else [bias]
        moments = _Fixed(mean.flatten(), scale.flatten().square().reciprocal())
        super().__init__([weight, *biases], [Block(0, list(range(1, 1 + len(biases))), groups, moments)])

    def over(
        self, parameters: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype | None = None
    ) -> LayerNormalization:
        if len(parameters) < len(self.parameters):
            raise ValueError("taking the mean off a layer's inputs mixes its weight and bias; give the block of both")
        restricted, twin = super().over(parameters, names, dtype), copy.copy(self)
        twin.parameters, twin._blocks = restricted.parameters, restricted._blocks
        return twin


@dataclass
class _Fixed:
    """`Moments` that stay: μ and the squared scale of each column, whatever is centered."""

    mean: Tensor
    variance: Tensor
    version: int = 0

    def known(self, centered: bool) -> tuple[Tensor, Tensor, float]:
        return self.mean, self.variance, 1.0
