"""Convex penalties of each entry alone, and L0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wellcond.penalties.penalty import Penalty, checked, soft, wide, widened


class L1(Penalty):
    """Sum of absolute values, ``strength * ||x||_1``: makes entries exactly zero.

    Args:
        strength: λ ≥ 0, per unit of the loss.

    Source: theory, section 4.3. The proximal step is soft thresholding.

    >>> L1(0.5).prox(torch.tensor([2.0, -0.25]), step=1.0)
    tensor([1.5000, 0.0000])
    """

    compiles = True
    l1_ratio = 1.0

    def value(self, x: Tensor) -> Tensor:
        return self.strength * wide(x).abs().sum()

    @widened
    def gradient(self, x: Tensor) -> Tensor:
        return self.strength * x.sign()

    @widened
    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return soft(x, self.strength * step)

    @widened
    def scaled_prox(self, x: Tensor, step: Tensor | float, scale: Tensor | float) -> Tensor:
        return soft(x, self.strength * step * scale)


class L2(Penalty):
    """Half the sum of squares, ``strength/2 * ||x||²``: weight decay.

    Args:
        strength: λ ≥ 0, per unit of the loss.

    Source: theory, section 4.2.
    """

    compiles = True
    smooth = True

    def value(self, x: Tensor) -> Tensor:
        return self.strength / 2 * wide(x).square().sum()

    @widened
    def gradient(self, x: Tensor) -> Tensor:
        return self.strength * x

    def add_gradient(self, gradient: Tensor, x: Tensor, weight: Tensor | float) -> None:
        factor = weight * self.strength
        if isinstance(factor, Tensor):
            super().add_gradient(gradient, x, weight)
        else:
            # Bit for bit what torch's optimizers do for their weight_decay.
            gradient.add_(x, alpha=factor)

    @widened
    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return x / (1 + self.strength * step)

    def scaled_prox(self, x: Tensor, step: Tensor | float, scale: Tensor | float) -> Tensor:
        return self.prox(x, step)


class ElasticNet(Penalty):
    """L1 and L2 together, ``strength * (l1_ratio * ||x||_1 + (1 - l1_ratio)/2 * ||x||²)``, as in scikit-learn.

    Args:
        strength: λ ≥ 0, per unit of the loss.
        l1_ratio: the share of L1, from 0 to 1.

    Source: theory, section 4.5.
    """

    compiles = True
    arguments = ("l1_ratio",)

    def __init__(self, strength: float, l1_ratio: float = 0.5):
        super().__init__(strength)
        self.l1_ratio = checked_ratio(l1_ratio)

    @property
    def _l2(self) -> Any:
        return self.strength * (1 - self.l1_ratio)

    def value(self, x: Tensor) -> Tensor:
        x = wide(x)
        return self.kink * x.abs().sum() + self._l2 / 2 * x.square().sum()

    @widened
    def gradient(self, x: Tensor) -> Tensor:
        return self.kink * x.sign() + self._l2 * x

    @widened
    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return soft(x, self.kink * step) / (1 + self._l2 * step)

    @widened
    def scaled_prox(self, x: Tensor, step: Tensor | float, scale: Tensor | float) -> Tensor:
        return soft(x, self.kink * step * scale) / (1 + self._l2 * step)


class L0(Penalty):
    """Number of entries that are not zero, ``strength * #{x != 0}``. Its proximal step is hard thresholding.

    Args:
        strength: λ ≥ 0, per unit of the loss.

    Source: theory, section 4.5.
    """

    compiles = True
    convex = False

    def value(self, x: Tensor) -> Tensor:
        return self.strength * (x != 0).sum().to(wide(x).dtype)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return self.scaled_prox(x, step, 1.0)

    @widened
    def scaled_prox(self, x: Tensor, step: Tensor | float, scale: Tensor | float) -> Tensor:
        # Roots apart: x² and the product of strength and step underflow.
        threshold = math.sqrt(2) * self.strength**0.5 * step**0.5 * scale
        return torch.where(x.abs() <= threshold, 0.0, x)

    def residual(self, x: Tensor, gradient: Tensor) -> Tensor:
        return torch.where(x == 0, 0.0, gradient).to(x.dtype)


class Power(Penalty):
    """Sum of powers of absolute values, ``strength/q * Σ|x|^q``.

    Args:
        strength: λ ≥ 0, per unit of the loss.
        q: 1 or more. With 1 it is L1, with 2 L2; of the others the gradient alone is to be had.

    Source: theory, section 4.4.
    """

    compiles = True
    arguments = ("q",)

    def __init__(self, strength: float, q: float):
        super().__init__(strength)
        self.q = checked("q", q, "a finite number, 1 or more", lambda q: 1 <= q < math.inf)
        self.smooth, self.l1_ratio = self.q > 1, float(self.q == 1)

    def value(self, x: Tensor) -> Tensor:
        return self.strength / self.q * wide(x).abs().pow(self.q).sum()

    @widened
    def gradient(self, x: Tensor) -> Tensor:
        return self.strength * x.abs().pow(self.q - 1) * x.sign()

    @widened
    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        if self.q == 1:
            return soft(x, self.strength * step)
        if self.q == 2:
            return x / (1 + self.strength * step)
        raise TypeError(
            f'{self!r} has no proximal step here; give q=1 or q=2, or attach it by its gradient, via="gradient"'
        )


def checked_ratio(l1_ratio: Any) -> float:
    """The share of L1 in a penalty of two parts."""
    return checked("l1_ratio", l1_ratio, "a number from 0 to 1", lambda r: 0 <= r <= 1)
