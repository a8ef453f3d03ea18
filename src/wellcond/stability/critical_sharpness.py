"""Curvature along an optimizer's own next step, from forward passes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wellcond.display import number
from wellcond.linalg import CONFIDENCE, Estimate, inner, norm
from wellcond.preconditioners import next_step, unwrapped_optimizer
from wellcond.problem import LossNotFiniteError, Problem
from wellcond.stability.edge import inverse

PASSES = 10
"""Forward passes over the data: one at p, at most five that look for the critical rate, four for the curvature."""

CLOSE = 0.01
"""The search for the critical learning rate stops when it is bracketed within this fraction."""


@dataclass(frozen=True)
class CriticalSharpness:
    """What the loss does along the optimizer's next step d, taken c times as long: φ(c) = L(p + c·d).

    Attributes:
        sharpness: 2/η_c. For gradient descent along an eigenvector it is the eigenvalue; in general the optimizer's own
            steps decide which curvatures it is a mean of.
        critical_learning_rate: η_c, the lr (of the first group, others in proportion) with which the next step would
            leave the loss as it is, and a little larger one raise it; "at least" where it fell as far as was looked.
        curvature: dᵀHd/‖d‖², from second differences of the loss. In a piecewise linear network they see the kinks
            within their reach, which H at p does not.
        slope: ∇Lᵀd, the derivative of the loss along the step at the present lr; negative where it descends.
        learning_rate: the present lr.
        loss: L(p).
        step_norm: ‖d‖.
        forward_passes: passes over the data without a gradient.
        gradients: gradients of the loss: one, more for an optimizer that evaluates the loss in its step.
    """

    sharpness: Estimate
    critical_learning_rate: Estimate
    curvature: Estimate
    slope: float
    learning_rate: float
    loss: float
    step_norm: float
    forward_passes: int
    gradients: int

    def __str__(self) -> str:
        """The three figures in a line."""
        return (
            f"critical sharpness {self.sharpness}, critical learning rate {self.critical_learning_rate} (now "
            f"{number(self.learning_rate)}), curvature along the step {self.curvature.with_error()}; "
            f"{self.forward_passes} forward passes"
        )


def critical_sharpness(problem: Problem, optimizer: Any, *, passes: int = PASSES) -> CriticalSharpness:
    """The curvature along the optimizer's next step, for models too large for any product with a Hessian.

    One gradient and about ten forward passes. The step is taken by a copy of the optimizer: parameters, gradients,
    state and random state are left as they are. Any torch optimizer will do, also one that is no preconditioner.
    Step hooks do not run, so a penalty of `regularize` is not part of the step.

    Args:
        problem: the loss and the data.
        optimizer: a torch.optim.Optimizer or a wrapper around it, over some of the problem's parameters.
        passes: forward passes to spend, 7 or more.

    Raises:
        TypeError: for something that is no optimizer.
        ValueError: if it maximizes, has none of the problem's parameters, or its next step is zero or not finite.

    Source: Kalra et al., "A Scalable Measure of Loss Landscape Curvature for Analyzing the Training Dynamics of LLMs",
    arXiv 2601.16979, for the critical sharpness. That the slope at 0 is known, ∇Lᵀd, makes the search a secant method
    on (φ(c) − φ(0))/c, exact on a quadratic.
    """
    optimizer = unwrapped_optimizer(optimizer)
    if passes < 7:
        raise ValueError(
            f"got passes={passes}; one at the start, two to bracket and four for the curvature are the least"
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("the optimizer maximizes; give it the negative loss and maximize=False to be measured")
    gradient = problem.gradient()
    d, gradients = next_step(problem, optimizer, gradient)
    length = norm(d)
    if not 0 < length < math.inf:
        raise ValueError(
            f"the optimizer's next step has norm {length}; its learning rate or the gradient is zero, or its state "
            "is not finite"
        )
    line = _Line(problem, d, float(inner(gradient, d)))
    rate = float(optimizer.param_groups[0]["lr"]) if "lr" in optimizer.param_groups[0] else 1.0
    multiple = line.crossing(passes - 4)
    second = line.second_derivative(multiple)
    critical = multiple.scaled(rate) if multiple.defined else multiple
    return CriticalSharpness(
        sharpness=_twice_inverse(critical),
        critical_learning_rate=critical,
        curvature=second.scaled(length**-2),
        slope=line.slope,
        learning_rate=rate,
        loss=line.start,
        step_norm=length,
        forward_passes=gradients - 1 + line.passes,
        gradients=gradients,
    )


class _Line:
    """φ(c) = L(p + c·d), evaluated and counted.

    Attributes:
        start: φ(0).
        slope: φ'(0).
        noise: what rounding may do to a value of φ, as far as it is known.
        passes: evaluations so far.
    """

    def __init__(self, problem: Problem, d: Tensor, slope: float):
        self.problem, self.d, self.slope, self.passes = problem, d, slope, 0
        self.start = self.at(0.0)
        self.eps = max(torch.finfo(problem.loss_dtype).eps, torch.finfo(problem.dtype).eps)
        self.noise = 2 * self.eps * abs(self.start)

    def at(self, c: float) -> float:
        """φ(c); infinite where it overflows."""
        self.passes += 1
        with self.problem.moved(c * self.d):
            try:
                return self.problem.loss()
            except LossNotFiniteError:
                if not c:
                    raise
                return math.inf

    def crossing(self, passes: int) -> Estimate:
        """The c > 0 where φ(c) = φ(0): the root of q(c) = (φ(c) − φ(0))/c, which is a line for a quadratic, with
        q(0) = φ'(0) known."""
        if self.slope >= 0:
            return Estimate.undefined(f"the next step does not descend, its slope is {number(self.slope)}")
        known = [(0.0, self.slope)]
        low, high, c = 0.0, math.inf, 1.0
        while self.passes < passes:
            q = (self.at(c) - self.start) / c
            low, high = (low, c) if q > 0 else (c, high)
            if math.isfinite(q):
                known = sorted([*known, (c, q)], key=lambda point: abs(point[1]))
            if math.isfinite(high) and high - low <= CLOSE * high:
                break
            root = _root(known)
            if math.isinf(high):
                c = min(max(2 * low, (1 + 0.5 * CLOSE) * root), 1000 * low) if root > low else 16 * low
            elif not low < root < high:
                c = math.sqrt(low * high) if low else high / 16
            else:
                # A little beyond it, to where the bracket is wide: the next two values then close it from both sides.
                c = root * (1 + math.copysign(0.4 * CLOSE, high - 2 * root + low))
                c = min(max(c, low + 0.02 * (high - low)), high - 0.02 * (high - low))
        blur = 2 * self.noise / -self.slope  # of the root of a q that rises as −φ'(0)/c
        how = f"bracketed along the next step, {self.passes} forward passes"
        if math.isinf(high):
            return Estimate(low, max(low - blur, 0.0), math.inf, how)
        return Estimate(min(max(_root(known), low), high), max(low - blur, 0.0), high + blur, how)

    def second_derivative(self, multiple: Estimate) -> Estimate:
        """φ''(0), from differences over h and 2h on both sides.

        h balances what rounding does to a difference, δ/h², against the fourth derivative's share, h²φ''''/12, where
        φ'''' is taken to be φ'' over the squared scale on which φ comes back to its start.
        """
        scale = multiple.value if multiple.defined and multiple.value > 0 else 1.0
        drop = max(abs(self.slope) * scale / 4, 1e-300)
        h = scale * min(max((6 * self.noise / drop) ** 0.25, 1e-4), 0.25)
        one, other, two, further = (self.at(c) for c in (h, -h, 2 * h, -2 * h))
        if not all(map(math.isfinite, (one, other, two, further))):
            return Estimate.undefined("the loss is not finite beside the parameters")
        near, far = (one - 2 * self.start + other) / h**2, (two - 2 * self.start + further) / (4 * h**2)
        # This combination of odd differences is 12hφ'(0), which is known: the rest is rounding (and fifth derivative).
        odd = 8 * (one - other) - (two - further) - 12 * self.slope * h
        noise = max(self.noise, abs(odd) / math.sqrt(130))
        value = (4 * near - far) / 3
        half = 3 * abs(far - near) + 3 * 3.2 * noise / h**2
        how = f"differences of the loss over {number(h)} and {number(2 * h)} steps, 4 forward passes"
        return Estimate(value, value - half, value + half, how, CONFIDENCE)


def _root(points: list[tuple[float, float]]) -> float:
    """Where q is zero, from its values (c, q) nearest to zero: c as a polynomial in q through two or three of them."""
    points = points[:3]
    if len({q for _, q in points}) < len(points) or len(points) < 2:
        return math.nan
    root = 0.0
    for i, (c, q) in enumerate(points):
        root += c * math.prod(other / (other - q) for j, (_, other) in enumerate(points) if j != i)
    return root


def _twice_inverse(rate: Estimate) -> Estimate:
    """2/η."""
    found = inverse(rate, 2.0)
    if rate.unresolved:
        return replace(found, value=0.0, low=0.0, how=f"{rate.how}; the loss fell as far as was looked")
    return found
