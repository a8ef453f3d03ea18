"""Penalties that make entries exactly zero and leave large ones alone: MCP and SCAD.

Their proximal steps have a second branch for a large step, as a dead coordinate's in the original space is (theory,
section 4.5); a tensor of steps takes the branches entry by entry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wellcond.penalties.penalty import Penalty, checked, soft, wide, widened


class MCP(Penalty):
    """Minimax concave penalty: slope `strength` at 0, falling to 0 at ``gamma * strength``, flat from there.

    Args:
        strength: τ ≥ 0, per unit of the loss; the knee is at γτ.
        gamma: γ > 0; the larger, the nearer to L1.

    Source: Zhang, "Nearly unbiased variable selection under minimax concave penalty", 2010; theory, section 4.5.
    """

    compiles = True
    convex = False
    l1_ratio = 1.0
    arguments = ("gamma",)

    def __init__(self, strength: float, gamma: float = 3.0):
        super().__init__(strength)
        self.gamma = checked("gamma", gamma, "a finite number above 0", lambda g: 0 < g < math.inf)

    def value(self, x: Tensor) -> Tensor:
        r = wide(x).abs().clamp(max=self.gamma * self.strength)
        return (self.strength * r - r.square() / (2 * self.gamma)).sum()

    @widened
    def gradient(self, x: Tensor) -> Tensor:
        return x.sign() * (self.strength - x.abs() / self.gamma).clamp(min=0)

    @widened
    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        s, t, gamma = _as_tensor(step, x), self.strength, self.gamma
        shrunk = torch.where(s < gamma, soft(x, s * t) / (1 - s / gamma), 0.0)
        # From s = γ the objective is concave up to the knee: 0 or x. Roots apart, for s·γ could overflow.
        reach = torch.where(s < gamma, gamma, s.sqrt() * math.sqrt(gamma))
        return torch.where(x.abs() <= t * reach, shrunk, x)


class SCAD(Penalty):
    """Smoothly clipped absolute deviation: L1 up to `strength`, from there falling off to flat at ``a * strength``.

    Args:
        strength: τ ≥ 0, per unit of the loss; the knees are at τ and aτ.
        a: above 2; the larger, the nearer to L1.

    Source: Fan and Li, "Variable selection via nonconcave penalized likelihood", 2001; theory, section 4.5.
    """

    compiles = True
    convex = False
    l1_ratio = 1.0
    arguments = ("a",)

    def __init__(self, strength: float, a: float = 3.7):
        super().__init__(strength)
        self.a = checked("a", a, "a finite number above 2", lambda a: 2 < a < math.inf)

    def value(self, x: Tensor) -> Tensor:
        r = wide(x).abs().clamp(max=self.a * self.strength)
        past = (r - self.strength).clamp(min=0)
        return (self.strength * r - past.square() / (2 * (self.a - 1))).sum()

    @widened
    def gradient(self, x: Tensor) -> Tensor:
        falling = (self.a * self.strength - x.abs()).clamp(min=0) / (self.a - 1)
        return x.sign() * falling.clamp(max=self.strength)

    @widened
    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        s, t, a, r = _as_tensor(step, x), self.strength, self.a, x.abs()
        middle = soft(x, s * t * (a / (a - 1))) / (1 - s / (a - 1))
        # From s = a − 1 the objective is concave between the knees: soft thresholding, or x where that is better. They
        # tie where |x|/τ is the arithmetic mean of s and a + 1; once that soft threshold is 0, the geometric mean.
        tie = torch.where(s < a + 1, (s + a + 1) / 2, s.sqrt() * math.sqrt(a + 1))
        small = r <= t * torch.where(s < a - 1, 1 + s, tie)
        return torch.where(small, soft(x, s * t), torch.where((s < a - 1) & (r <= a * t), middle, x))


def _as_tensor(step: Tensor | float, x: Tensor) -> Tensor:
    return step if isinstance(step, Tensor) else x.new_full((), step)
