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
    """α·λ_max(PᵀHP) over the stability bound of the optimizer's update.

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
    steps = steps_of(optimizer)
    _, rate, bound = steps[0]
    if len({(r, b) for _, r, b in steps}) == 1:
        if largest is None:
            operator = (curvature or Hessian(problem)).preconditioned(preconditioner_of(optimizer))
            largest = eigenvalues(operator, max_products=max_products, seed=seed).largest()
        ratio = largest.scaled(rate / bound)
    else:
        P = preconditioner_of(optimizer)
        weighted = [s * math.sqrt(r / b) for s, (_, r, b) in zip(P.scales, steps, strict=True) if r > 0]
        if len(weighted) < len(steps):
            raise ValueError("a parameter group has learning rate 0: freeze its parameters to leave them out")
        operator = (curvature or Hessian(problem)).preconditioned(Diagonal(P.parameters, weighted, P.rounding))
        ratio = eigenvalues(operator, max_products=max_products, seed=seed).largest()
    learning_rate = float(optimizer.param_groups[0]["lr"])
    return EdgeRatio(ratio, learning_rate, _allowed(ratio, learning_rate), bound, rate, len(optimizer.param_groups))


def _allowed(ratio: Estimate, learning_rate: float) -> Estimate:
    if ratio.value <= 0:
        return Estimate(math.inf, math.inf, math.inf, "no positive curvature", ratio.confidence)
    low = learning_rate / ratio.high
    high = learning_rate / ratio.low if ratio.low > 0 else math.inf
    return Estimate(learning_rate / ratio.value, low, high, ratio.how, ratio.confidence)
