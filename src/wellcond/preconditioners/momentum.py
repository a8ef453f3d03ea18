"""What an optimizer makes of the gradient beside scaling it: momentum, and how far it lets the step go."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Momentum:
    """The linear recursion of a step with P frozen: m ← βm + c·g, z ← z − α(a·g + b·m), g the gradient in z.

    Every optimizer of theory section 2.3 is one of these; the constructors below name them.

    Attributes:
        beta: β, 0 ≤ β < 1.
        c: what of the gradient goes into m.
        a, b: what of the gradient and of m the step is made of.
        averaged: whether m is divided by 1 − βᵏ in the k-th step after it was zero.
        first: c of the first step after m was created; torch's SGD does not dampen it. None for c.
    """

    beta: float = 0.0
    c: float = 1.0
    a: float = 0.0
    b: float = 1.0
    averaged: bool = False
    first: float | None = None

    @classmethod
    def heavy_ball(cls, beta: float, dampening: float = 0.0) -> Momentum:
        """m ← βm + (1−d)g, the step αm; without momentum torch's SGD does not dampen either."""
        return cls(beta, 1 - dampening, first=1.0) if beta else cls()

    @classmethod
    def nesterov(cls, beta: float) -> Momentum:
        """torch.optim.SGD's: m ← βm + g, the step α(g + βm)."""
        return cls(beta, a=1.0, b=beta)

    @classmethod
    def average(cls, beta: float) -> Momentum:
        """Adam's: m ← βm + (1−β)g, the step αm/(1−βᵏ)."""
        return cls(beta, 1 - beta, averaged=True)

    @property
    def gain(self) -> float:
        """How far a gradient that stays takes z in every step, in α·g: what a penalty's step is to keep up with (4.7).

        >>> Momentum().gain, Momentum.heavy_ball(0.5).gain, Momentum.average(0.9).gain
        (1.0, 2.0, 1.0)
        """
        return self.a + self.b * self.c / (1 - self.beta)

    @property
    def bound(self) -> float:
        """What α·λ_max(PᵀHP) must stay under: at it a step along the eigenvector is undone by the next one.

        With z and m changing sign in every step, m = c·g/(1+β) and 2z = α(a·g + b·m), where g = λz. `averaged` does not
        count: its divisor tends to 1, and is part of α before.

        >>> Momentum().bound, round(Momentum.heavy_ball(0.9).bound, 9), round(Momentum.average(0.9).bound, 9)
        (2.0, 3.8, 38.0)
        """
        step = self.a * (1 + self.beta) + self.b * self.c
        return 2 * (1 + self.beta) / step if step > 0 else math.inf
