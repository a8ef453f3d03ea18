"""How near the learning rate is to the largest that the curvature allows (theory, section 2.3)."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from wellcond.curvature import CurvatureOperator, Hessian
from wellcond.display import number
from wellcond.linalg import Estimate, SymmetricOperator, eigenvalues
from wellcond.parameters import flatten
from wellcond.preconditioners import Diagonal, Step, own_preconditioner_of, reading_of, steps_of, with_given
from wellcond.problem import Problem

TARGET = 0.5
"""The edge ratio that a suggested rate has: curvature may double before the step becomes unstable. Gradient descent's
rate is then 1/λ_max, at which a step along the steepest direction ends in that direction's minimum."""


@dataclass(frozen=True)
class EdgeRatio:
    """α·λ_max(PᵀHP) over the stability bound of the optimizer's update, its weight decay τ included.

    Decay in the gradient makes PᵀHP + τPᵀP of PᵀHP; decoupled decay adds lr·τ/2 to the ratio, whatever the momentum.

    Attributes:
        ratio: above 1 the step is locally unstable; full-batch training is known to hover at 1.
        learning_rate: lr of the optimizer's first group.
        allowed: the lr at which the ratio would be 1, everything else as it is and other groups' rates in proportion;
            infinite without positive curvature.
        bound: what α·λ_max is held against, of the first group.
        rate: α, the first group's lr with the early-step correction of the Adam family.
        groups: number of parameter groups; where their rates, bounds or decays differ, the ratio is the λ_max of
            PᵀHP scaled by each parameter's own rate over bound.
        decay: the largest weight decay of a group, 0 without.
    """

    ratio: Estimate
    learning_rate: float
    allowed: Estimate
    bound: float
    rate: float
    groups: int
    decay: float = 0.0


@dataclass(frozen=True)
class SuggestedLearningRate:
    """The learning rate at which the edge ratio would be a target below 1.

    Attributes:
        learning_rate: of the optimizer's first group; infinite where nothing bounds it.
        factor: what to multiply every group's lr with; not defined where it is 0 now.
        target: the edge ratio that it then has.
        edge: how it is now.
        note: what to know about it; may be empty.
    """

    learning_rate: Estimate
    factor: Estimate
    target: float
    edge: EdgeRatio
    note: str

    def __str__(self) -> str:
        """What to do, in a line."""
        now = f"now {number(self.edge.learning_rate)} at an edge ratio of {self.edge.ratio}"
        lines = f"learning rate {self.learning_rate} for an edge ratio of {number(self.target)}; {now}"
        return f"{lines}; {self.note}" if self.note else lines


def edge_ratio(
    problem: Problem,
    optimizer: Any,
    *,
    largest: Estimate | None = None,
    curvature: CurvatureOperator | None = None,
    max_products: int = 80,
    start: Tensor | None = None,
    seed: int = 0,
) -> EdgeRatio:
    """The edge ratio of a training run.

    Args:
        problem: the loss and the data.
        optimizer: as for `preconditioner_of`; its current learning rates count.
        largest: λ_max(PᵀHP) where it is already known; used where the rest follows from it.
        curvature: the Hessian of the problem unless given.
        max_products: to spend on λ_max otherwise; all are.
        start: for λ_max, as for `wellcond.eigenvalues`.
        seed: of the Lanczos start.

    Raises:
        TypeError, ValueError: as `preconditioner_of`; ValueError for maximize=True.

    Source: theory, section 2.3; Cohen et al., arXiv 2207.14484.

    >>> import torch, wellcond as wc
    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> x = torch.full((4, 1), 3.0, dtype=torch.float64)
    >>> problem = wc.Problem(model, torch.nn.MSELoss(), (x, x))
    >>> edge = wc.edge_ratio(problem, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> print(edge.ratio, edge.allowed)  # H = 2·3² = 18, and 0.1·18/2
    0.9 0.111
    """
    optimizer, _ = reading_of(optimizer)
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("the optimizer maximizes; give it the negative loss and maximize=False to be measured")
    steps, P = steps_of(optimizer), own_preconditioner_of(optimizer)
    first = steps[0]
    shares, shifts, together = _shares_and_shifts(steps, P)
    ratio = _largest(problem, optimizer, P, shares, shifts, largest, curvature, max_products, start, seed)
    allowed = _inverse(ratio, 1.0 if together else first.learning_rate)
    return EdgeRatio(
        ratio.scaled(first.learning_rate) if together else ratio,
        first.learning_rate,
        allowed,
        first.bound,
        first.learning_rate * first.correction,
        len(optimizer.param_groups),
        max(s.coupled + s.decoupled for s in steps),
    )


def suggest_learning_rate(
    problem: Problem,
    optimizer: Any,
    *,
    target: float = TARGET,
    curvature: CurvatureOperator | None = None,
    max_products: int = 80,
    seed: int = 0,
) -> SuggestedLearningRate:
    """The learning rate that brings the edge ratio to a target, everything else as it is.

    Stability only: whether training is fastest there, the noise of the gradient and the course of training decide. An
    optimizer that adapts changes P after a change of its rate, and so the edge.

    Args:
        problem: the loss and the data.
        optimizer: as for `edge_ratio`.
        target: the edge ratio to have, above 0 and below 1.
        curvature: the Hessian of the problem unless given.
        max_products: to spend on λ_max.
        seed: of the Lanczos start.

    Raises:
        TypeError, ValueError: as `edge_ratio`, and for a target out of range.

    Source: theory, section 2.3.
    """
    if not 0 < target < 1:
        raise ValueError(f"got target={target}; an edge ratio to aim at is above 0 and below 1, where a step is stable")
    edge = edge_ratio(problem, optimizer, curvature=curvature, max_products=max_products, seed=seed)
    rate = edge.allowed.scaled(target)
    if edge.learning_rate > 0:
        factor = rate.scaled(1 / edge.learning_rate)
    else:
        factor = Estimate.undefined("the first group's learning rate is 0")
    notes = []
    if edge.groups > 1:
        notes.append("of the first group; multiply every group's by `factor`")
    if edge.decay:
        notes.append(f"weight decay, up to {number(edge.decay)}, counts in it as curvature")
    if math.isinf(rate.value):
        notes.append(rate.how)
    return SuggestedLearningRate(rate, factor, target, edge, "; ".join(notes))


def takes_products(optimizer: Any) -> bool:
    """Whether the edge ratio takes products of its own where λ_max(PᵀHP) is known: parameters differ in their rate over
    bound, or in what weight decay adds."""
    shares, shifts, _ = _shares_and_shifts(steps_of(optimizer), own_preconditioner_of(optimizer))
    return len(set(shares)) > 1 or not _uniform(shifts)


def _shares_and_shifts(steps: list[Step], P: Diagonal) -> tuple[list[float], list[Tensor], bool]:
    """Rate over bound and what weight decay adds to the ratio, by parameter; at lr = 1 where they have one lr together,
    so that it says what is allowed even where that is 0."""
    together = len({s.learning_rate for s in steps}) == 1
    rates = [1.0 if together else s.learning_rate for s in steps]
    shares = [rate * s.correction / s.bound for rate, s in zip(rates, steps, strict=True)]
    shifts = [
        share * s.coupled * scale.square() + rate * s.decoupled / 2
        for rate, share, s, scale in zip(rates, shares, steps, P.scales, strict=True)
    ]
    return shares, shifts, together


def _uniform(shifts: list[Tensor]) -> bool:
    least, most = min(float(s.min()) for s in shifts), max(float(s.max()) for s in shifts)
    return most - least <= 1e-12 * most


def _largest(
    problem: Problem,
    optimizer: Any,
    P: Diagonal,
    shares: list[float],
    shifts: list[Tensor],
    known: Estimate | None,
    curvature: CurvatureOperator | None,
    max_products: int,
    start: Tensor | None,
    seed: int,
) -> Estimate:
    """λ_max of D^½PᵀHPD^½ + S: D the share of each parameter, S its decay; by a product with each only where they are
    not the same everywhere."""
    curvature = curvature or Hessian(problem)
    curvature.check_of(problem)
    most = max(float(s.max()) for s in shifts)
    operator: SymmetricOperator
    if len(set(shares)) == 1:
        operator, share = curvature.preconditioned(with_given(optimizer, P)), shares[0]
    else:
        # One that stands still has a share too small to count.
        scales = [scale * math.sqrt(max(share, 1e-30)) for scale, share in zip(P.scales, shares, strict=True)]
        scaled_P = with_given(optimizer, Diagonal(P.parameters, scales, P.rounding))
        operator, share, known = curvature.preconditioned(scaled_P), 1.0, None
    if not _uniform(shifts):
        of = {id(p): s for p, s in zip(P.parameters, shifts, strict=True)}
        added = flatten([of[id(p)].expand(p.shape) for p in problem.parameters]).to(operator.dtype)
        operator, share, known, most = _Shifted(operator, share, added), 1.0, None, 0.0
    if known is None:
        products = min(max_products, operator.size)
        known = eigenvalues(operator, min_products=products, max_products=products, start=start, seed=seed).largest()
    scaled = known.scaled(share)
    return replace(scaled, value=scaled.value + most, low=scaled.low + most, high=scaled.high + most)


class _Shifted(SymmetricOperator):
    """share·A + diag(added)."""

    def __init__(self, A: SymmetricOperator, share: float, added: Tensor):
        super().__init__(A.size, A.dtype, A.device)
        self.A, self.share, self.added, self.rounding = A, share, added, A.rounding

    def keeping(self, products: int) -> contextlib.AbstractContextManager[object]:
        return self.A.keeping(products)

    def _multiply(self, v: Tensor) -> Tensor:
        return self.share * self.A.matvec(v) + self.added * v


def _inverse(x: Estimate, over: float) -> Estimate:
    """over/x; infinite where x is not positive."""
    if x.value <= 0:
        low = over / x.high if x.high > 0 else math.inf
        return Estimate(math.inf, low, math.inf, "no positive curvature bounds it", x.confidence)
    return Estimate(over / x.value, over / x.high, over / x.low if x.low > 0 else math.inf, x.how, x.confidence)
