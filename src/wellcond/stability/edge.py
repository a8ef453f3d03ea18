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
from wellcond.preconditioners import DiagonalPreconditioner, own_preconditioner_of, reading_of, steps_of, with_given
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
        curvature: default: the Hessian of the problem.
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
    curvature = curvature or Hessian(problem)
    curvature.check_of(problem)
    scales = _Scales(optimizer)
    operator, share, shift = scales.of(curvature)
    if largest is None or scales.differ:
        products = min(max_products, operator.size)
        found = eigenvalues(operator, min_products=products, max_products=products, start=start, seed=seed)
        largest = found.largest()
    ratio = largest.scaled(share)
    ratio = replace(ratio, value=ratio.value + shift, low=ratio.low + shift, high=ratio.high + shift)
    first = scales.steps[0]
    return EdgeRatio(
        ratio.scaled(first.learning_rate) if scales.one_rate else ratio,
        first.learning_rate,
        inverse(ratio, 1.0 if scales.one_rate else first.learning_rate),
        first.bound,
        first.learning_rate * first.correction,
        len(optimizer.param_groups),
        max(s.coupled + s.decoupled for s in scales.steps),
    )


def suggest_learning_rate(
    problem: Problem, optimizer: Any, *, target: float = TARGET, seed: int = 0
) -> SuggestedLearningRate:
    """The learning rate that brings the edge ratio to a target, everything else as it is.

    Stability only: whether training is fastest there, the noise of the gradient and the course of training decide. An
    optimizer that adapts changes P after a change of its rate, and so the edge.

    Args:
        problem: the loss and the data.
        optimizer: as for `edge_ratio`.
        target: the edge ratio to have, above 0 and below 1.
        seed: of the Lanczos start.

    Raises:
        TypeError, ValueError: as `edge_ratio`, and for a target out of range.

    Source: theory, section 2.3.
    """
    if not 0 < target < 1:
        raise ValueError(f"got target={target}; an edge ratio to aim at is above 0 and below 1, where a step is stable")
    edge = edge_ratio(problem, optimizer, seed=seed)
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
    return _Scales(optimizer).differ


class _Scales:
    """D and S of D^½PᵀHPD^½ + S, whose λ_max is the edge ratio: rate over bound, and what weight decay adds, of each
    parameter.

    Where all have one learning rate they are at lr = 1, so that the ratio says what is allowed even where that is 0.

    Attributes:
        differ: whether D or S is not the same everywhere, so that λ_max(PᵀHP) does not say the ratio.
    """

    def __init__(self, optimizer: Any):
        self.optimizer, self.steps, self.P = optimizer, steps_of(optimizer), own_preconditioner_of(optimizer)
        self.one_rate = len({s.learning_rate for s in self.steps}) == 1
        rates = [1.0 if self.one_rate else s.learning_rate for s in self.steps]
        self.shares = [rate * s.correction / s.bound for rate, s in zip(rates, self.steps, strict=True)]
        self.shifts = [
            share * s.coupled * scale.square() + rate * s.decoupled / 2
            for rate, share, s, scale in zip(rates, self.shares, self.steps, self.P.scales, strict=True)
        ]
        least, self.most = min(float(s.min()) for s in self.shifts), max(float(s.max()) for s in self.shifts)
        self.differ = len(set(self.shares)) > 1 or self.most - least > 1e-12 * self.most

    def of(self, curvature: CurvatureOperator) -> tuple[SymmetricOperator, float, float]:
        """An operator, what its λ_max is multiplied by, and what is added; D and S are in the operator where they
        differ."""
        if not self.differ:
            return curvature.preconditioned(with_given(self.optimizer, self.P)), self.shares[0], self.most
        # One that stands still has a share too small to count.
        scales = [s * math.sqrt(max(x, 1e-30)) for s, x in zip(self.P.scales, self.shares, strict=True)]
        P = with_given(self.optimizer, DiagonalPreconditioner(self.P.parameters, scales, self.P.rounding))
        shifts = {id(p): s for p, s in zip(self.P.parameters, self.shifts, strict=True)}
        added = flatten([shifts[id(p)].expand(p.shape) for p in curvature.problem.parameters])
        return _Shifted(curvature.preconditioned(P), added), 1.0, 0.0


class _Shifted(SymmetricOperator):
    """A + diag(added)."""

    def __init__(self, A: SymmetricOperator, added: Tensor):
        super().__init__(A.size, A.dtype, A.device)
        self.A, self.added, self.rounding = A, added.to(A.dtype), A.rounding

    def keeping(self, products: int) -> contextlib.AbstractContextManager[object]:
        return self.A.keeping(products)

    def _multiply(self, v: Tensor) -> Tensor:
        return self.A.matvec(v) + self.added * v


def inverse(x: Estimate, over: float) -> Estimate:
    """over/x; infinite where x is not positive."""
    if x.value <= 0:
        low = over / x.high if x.high > 0 else math.inf
        return Estimate(math.inf, low, math.inf, "no positive curvature bounds it", x.confidence)
    return Estimate(over / x.value, over / x.high, over / x.low if x.low > 0 else math.inf, x.how, x.confidence)
