"""What a penalty R answers: its value, its gradient, its proximal step, and how far a point is from stationary."""

from __future__ import annotations

import copy
import functools
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


class Penalty(ABC):
    """A function R of one tensor, its strength included.

    A new penalty defines `value` and `prox`, and `gradient` where R has one; the rest follows, or is overridden where
    a closed form is cheaper. The formulas branch on no tensor's value, so that they trace and never wait for a device.

    Args:
        strength: λ ≥ 0, per unit of the loss.

    Attributes:
        strength: the same; None for a constraint.
        separable: whether entries don't interact, so that any piece of a tensor can be treated alone.
        smooth: whether the gradient exists everywhere.
        convex: whether R is.
        compiles: see `key`; not inherited.
        l1_ratio: R's slope on either side of an entry at 0, over its strength; 0 where R is smooth there.
        arguments: names of the arguments other than the strength.

    Raises:
        TypeError, ValueError: for an argument that is no number, or out of its range.

    Source: theory, sections 4.4 and 4.5.
    """

    strength: Any
    separable: ClassVar[bool] = True
    smooth: bool = False
    convex: ClassVar[bool] = True
    compiles: ClassVar[bool] = False
    l1_ratio: float = 0.0
    arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, strength: float):
        self.strength = _checked_strength(strength)

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """R(x), of shape (), in at least float32."""

    def gradient(self, x: Tensor) -> Tensor:
        """∇R(x), of x's shape: the subgradient that is 0 at 0 where R has a kink there.

        Raises:
            TypeError: if R has none.
        """
        raise TypeError(f'{self!r} has no gradient; attach it by its proximal step, via="prox"')

    def add_gradient(self, gradient: Tensor, x: Tensor, weight: Tensor | float) -> None:
        """Adds `weight` · ∇R(x) to `gradient`, in place."""
        gradient.add_(weight * self.gradient(x))

    @abstractmethod
    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """argmin_q R(q) + Σ (q_i − x_i)²/(2 step_i); `step` > 0 broadcasts against x.

        What is not finite passes unchanged.
        """

    def scaled_prox(self, x: Tensor, step: Tensor | float, scale: Tensor | float) -> Tensor:
        """The prox in z = x/scale carried back, scale · prox(x/scale, step); `scale` > 0 broadcasts against x."""
        z = wide(x) / scale
        q = self.prox(z, step)
        # What is not moved does not drift by rounding; a z that underflowed to 0 carries back to 0. Without a scale, as
        # after a second moment that overflowed, there is no z.
        return torch.where(((q == z) & (q != 0)) | (scale == 0), x, scale * q).to(x.dtype)

    def residual(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The element of least norm of `gradient` + ∂R(x), of x's shape: zero exactly where x is stationary."""
        return torch.where(x == 0, soft(gradient, self.kink), gradient + self.gradient(x)).to(x.dtype)

    @property
    def kink(self) -> Any:
        """R's slope on either side of an entry at 0; 0 where R is smooth."""
        return self.strength * self.l1_ratio if self.l1_ratio else 0.0

    def with_strength(self, strength: Tensor | float) -> Self:
        """The same penalty of another strength; a 0-dim tensor is taken as it is, unchecked."""
        if self.strength is None:
            raise TypeError(f"{self!r} is a constraint and has no strength to change")
        other = copy.copy(self)
        other.strength = strength if isinstance(strength, Tensor) else _checked_strength(strength)
        return other

    @property
    def options(self) -> dict[str, Any]:
        """The arguments other than the strength."""
        return {name: getattr(self, name) for name in self.arguments}

    @property
    def key(self) -> Hashable:
        """What identifies the formula, whatever the strength; None where `prox` can't be compiled once for all.

        That takes a class that says so of itself, by `compiles`: its formulas depend on the entry, the strength (which
        may come as a tensor) and `options` alone.
        """
        return (type(self), *self.options.items()) if vars(type(self)).get("compiles") else None

    def __repr__(self) -> str:
        strength = [] if self.strength is None else [f"{self.strength}"]
        return f"{type(self).__name__}({', '.join(strength + [f'{k}={v}' for k, v in self.options.items()])})"


def soft(x: Tensor, threshold: Any) -> Tensor:
    """sign(x)·max(|x| − threshold, 0), written so that it compiles to half the cost of that."""
    return x - x.clamp(-threshold, threshold)


def wide(x: Tensor) -> Tensor:
    """`x` in at least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def widened(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method that computes in at least float32 and answers in its first tensor's dtype, whatever else it is given."""

    def widest(argument: Any) -> Any:
        return wide(argument) if isinstance(argument, Tensor) else argument

    @functools.wraps(method)
    def run(self: Penalty, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = tuple(map(widest, args)), {k: widest(v) for k, v in kwargs.items()}
        return method(self, wide(x), *args, **kwargs).to(x.dtype)

    return run


def checked(name: str, given: Any, allowed: str, test: Callable[[float], bool]) -> float:
    """The argument as a float, refused unless `test` holds, with what is `allowed` in words."""
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        raise TypeError(f"{name} is {given!r}; give {allowed}")
    if not test(float(given)):
        raise ValueError(f"{name} is {given}; give {allowed}")
    return float(given)


def _checked_strength(strength: Any) -> float:
    return checked("strength", strength, "a finite number, 0 or more", lambda s: 0 <= s < math.inf)
