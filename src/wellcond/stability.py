"""How near the learning rate is to the largest that the curvature allows (theory, section 2.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wellcond.curvature import CurvatureOperator, Hessian
from wellcond.linalg import Estimate, eigenvalues
from wellcond.preconditioners import Diagonal, preconditioner_of, reading_of, steps_of
from wellcond.problem import Problem


@dataclass(frozen=True)
class EdgeRatio:
    """α·λ_max(PᵀHP) over the stability bound of the optimizer's update, for the loss alone.

    Weight decay τ is not in it: decoupled, or under SGD, it adds α·τ over the bound.

    Attributes:
        ratio: above 1 the step is locally unstable; full-batch training is known to hover at 1.
        learning_rate: lr of the optimizer's first group.
        allowed: the lr at which the ratio would be 1, everything else as it is; infinite without positive curvature.
        bound: what α·λ_max is held against, of the first group.
        rate: α, the first group's lr with the early-step correction of the Adam family.
        groups: number of parameter groups; where their rates or bounds differ, the ratio is the λ_max of
            PᵀHP scaled by each parameter's own rate over bound.
    """

    ratio: Estimate
    learning_rate: float
    allowed: Estimate
    bound: float
    rate: float
    groups: int


def edge_ratio(
    problem: Problem,
    optimizer: Any,
    *,
    largest: Estimate | None = None,
    curvature: CurvatureOperator | None = None,
    max_products: int = 80,
    seed: int = 0,
) -> EdgeRatio:
    """The edge ratio of a training run.

    Args:
        problem: the loss and the data.
        optimizer: as for `preconditioner_of`; its current learning rates count.
        largest: λ_max(PᵀHP) where it is already known.
        curvature: the Hessian of the problem unless given.
        max_products: to spend on λ_max otherwise.
        seed: of the Lanczos start.

    Raises:
        TypeError, ValueError: as `preconditioner_of`; ValueError for maximize=True.

    Source: theory, section 2.3; Cohen et al., arXiv 2207.14484.
    """
    optimizer, _ = reading_of(optimizer)
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("the optimizer maximizes; give it the negative loss and maximize=False to be measured")
    steps, P = steps_of(optimizer), preconditioner_of(optimizer)
    first = steps[0]
    rate = first.learning_rate * first.correction
    curvature = curvature or Hessian(problem)

    def largest_of(preconditioner: Diagonal) -> Estimate:
        operator = curvature.preconditioned(preconditioner)
        products = min(max_products, operator.size)
        return eigenvalues(operator, min_products=products, max_products=products, seed=seed).largest()

    if has_one_rate(optimizer):
        largest = largest or largest_of(P)
        ratio = largest.scaled(rate / first.bound)
        allowed = _inverse(largest, first.bound / first.correction)
    else:
        # Each parameter by its own rate over bound; one that stands still has a share too small to count.
        shares = [max(s.learning_rate * s.correction / s.bound, 1e-30) for s in steps]
        scales = [scale * math.sqrt(share) for scale, share in zip(P.scales, shares, strict=True)]
        ratio = largest_of(Diagonal(P.parameters, scales, P.rounding))
        allowed = _inverse(ratio, first.learning_rate)
    return EdgeRatio(ratio, first.learning_rate, allowed, first.bound, rate, len(optimizer.param_groups))


def has_one_rate(optimizer: Any) -> bool:
    """Whether all parameters have the same rate and bound: then λ_max(PᵀHP) decides, and where it is known the edge
    ratio takes no products."""
    return len({(s.learning_rate * s.correction, s.bound) for s in steps_of(optimizer)}) == 1


def _inverse(x: Estimate, over: float) -> Estimate:
    """over/x; infinite where x is not positive."""
    if x.value <= 0 or math.isinf(over):
        return Estimate(math.inf, math.inf, math.inf, "no positive curvature bounds it", x.confidence)
    return Estimate(over / x.value, over / x.high, over / x.low if x.low > 0 else math.inf, x.how, x.confidence)
