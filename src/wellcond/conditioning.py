"""How well conditioned a curvature is: the figures of theory section 2.2, each with its interval and its origin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from wellcond.linalg import (
    CONFIDENCE,
    Estimate,
    GradientQuadrature,
    SampledSpectrum,
    SymmetricOperator,
    WholeSpectrum,
)

DENSE_LIMIT = 2000
"""Up to this many parameters the spectrum is computed whole."""

REMAINING = 0.01
"""ε of κ_eff: the fraction of the reducible loss that gradient descent is to leave."""


@dataclass(frozen=True)
class Effort:
    """How many products may be spent where the spectrum is not computed whole.

    Attributes:
        extremes: Lanczos steps for the extreme eigenvalues. All are spent: further ones tighten the bound of what was
            missed after the eigenvalues themselves have converged.
        count: eigenvalues to list at each end.
        probes, probe_steps: random directions for fractions of eigenvalues and traces, and products for each.
        trace_probes: random directions where only a trace is wanted, one product each.
        gradient_steps: Lanczos steps from the gradient, for κ_eff.
    """

    extremes: int = 80
    count: int = 5
    probes: int = 8
    probe_steps: int = 24
    trace_probes: int = 32
    gradient_steps: int = 40


@dataclass(frozen=True)
class Conditioning:
    """The figures of theory section 2.2 for one curvature operator.

    Attributes:
        size: n.
        largest, smallest: extreme eigenvalues, algebraic.
        top, bottom: a few of the largest, falling, and of the smallest, rising. Above the dense limit only those whose
            residual bound is within 0.1 % of the largest in size; their intervals contain *an* eigenvalue each.
        kappa_mean: κ̄, the largest eigenvalue over the mean one (the mean of |λ| where the operator is indefinite).
        kappa_star: κ*, over the smallest eigenvalue that is not zero to rounding; only from a whole spectrum.
        kappa_effective: κ_eff, what gradient descent feels, from the operator's own gradient.
        outside_range: fraction of the squared gradient on directions without curvature.
        negative_fraction: fraction of eigenvalues below −θ·largest.
        theta: θ, under which an eigenvalue counts as zero relative to the largest.
        spectrum: (n,), all eigenvalues, rising, where they were computed; else None.
        products: matrix-vector products spent.
    """

    size: int
    largest: Estimate
    smallest: Estimate
    top: list[Estimate]
    bottom: list[Estimate]
    kappa_mean: Estimate
    kappa_star: Estimate
    kappa_effective: Estimate
    outside_range: Estimate
    negative_fraction: Estimate
    theta: float
    spectrum: Tensor | None
    products: int
    _source: WholeSpectrum | SampledSpectrum = field(repr=False)

    def kappa(self, fraction: float) -> Estimate:
        """κ(ρ): the smallest κ for which a fraction ρ of the eigenvalues above θλ_max is at least λ_max/κ.

        Args:
            fraction: ρ, 0 < ρ ≤ 1.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"got fraction={fraction}; it is above 0 and at most 1")
        return self._source.kappa(fraction)

    def counts_above(self, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the number of eigenvalues ≥ each threshold, (g,) each: the spectrum as a curve with its error."""
        low, high = self._source.fraction_above(thresholds)
        return low * self.size, high * self.size

    def squared_row_norms(self) -> Tensor:
        """Samples of the squared norms of the matrix's rows, (s, n) and unbiased; one exact row where it was formed."""
        return self._source.squared_rows


def conditioning(
    operator: SymmetricOperator,
    *,
    effort: Effort | None = None,
    dense_limit: int = DENSE_LIMIT,
    effective: bool = True,
    seed: int = 0,
) -> Conditioning:
    """The condition figures of a curvature: exact up to `dense_limit` parameters, honest intervals above.

    κ_eff comes from the operator's gradient on its positive semidefinite curvature: for a Hessian, the Gauss-Newton
    matrix of the same problem.

    Args:
        operator: a Hessian, Gauss-Newton or any symmetric operator, preconditioned or not.
        effort: products to spend above the limit.
        dense_limit: the largest size for which the matrix is formed (n products, 8n² bytes).
        effective: whether to compute κ_eff, which takes a gradient and products of its own.
        seed: of every random direction.

    Source: theory, section 2.2.

    >>> from wellcond.linalg import MatrixOperator
    >>> import torch
    >>> c = conditioning(MatrixOperator(torch.diag(torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64))))
    >>> print(c.largest, c.kappa_mean, c.kappa_star, c.kappa(0.5))
    9 2.25 9 4.5
    """
    effort = effort or Effort()
    spent = operator.products
    if operator.size <= dense_limit:
        source: WholeSpectrum | SampledSpectrum = WholeSpectrum.of(operator)
    else:
        source = _sampled(operator, effort, seed)
    if effective:
        kappa_effective, outside, extra = _effective(operator, source, effort, dense_limit, seed)
    else:
        kappa_effective, outside, extra = *(Estimate.undefined("not asked for"),) * 2, 0
    return Conditioning(
        size=operator.size,
        largest=source.largest(),
        smallest=source.smallest(),
        top=source.top(effort.count),
        bottom=source.bottom(effort.count),
        kappa_mean=source.kappa_mean(),
        kappa_star=source.kappa_star(),
        kappa_effective=kappa_effective,
        outside_range=outside,
        negative_fraction=source.negative_fraction(),
        theta=source.theta,
        spectrum=source.values if isinstance(source, WholeSpectrum) else None,
        products=operator.products - spent + extra,
        _source=source,
    )


def _sampled(operator: SymmetricOperator, effort: Effort, seed: int) -> SampledSpectrum:
    return SampledSpectrum.of(
        operator,
        steps=effort.extremes,
        count=effort.count,
        probes=effort.probes,
        probe_steps=effort.probe_steps,
        seed=seed,
    )


def _effective(
    operator: SymmetricOperator, source: WholeSpectrum | SampledSpectrum, effort: Effort, dense_limit: int, seed: int
) -> tuple[Estimate, Estimate, int]:
    """κ_eff, the gradient's weight outside the range, and the products this took elsewhere than in `operator`."""
    gradient = operator.gradient()
    if gradient is None:
        why = Estimate.undefined("this operator has no gradient")
        return why, why, 0
    curvature = operator.semidefinite()
    if curvature is None:
        why = Estimate.undefined("no positive semidefinite curvature: the loss is not split into output and target")
        return why, why, 0
    spent = curvature.products
    if curvature is not operator:
        small = operator.size <= dense_limit
        source = (
            WholeSpectrum.of(curvature)
            if small
            else _sampled(curvature, replace(effort, count=1, probes=1, probe_steps=1), seed)
        )
    if isinstance(source, WholeSpectrum):
        effective, outside = _effective_whole(source, gradient)
    else:
        effective, outside = _effective_sampled(curvature, source.largest(), gradient, effort.gradient_steps)
    return effective, outside, curvature.products - spent if curvature is not operator else 0


def _effective_whole(source: WholeSpectrum, gradient: Tensor) -> tuple[Estimate, Estimate]:
    weights, values = source.gradient_weights(gradient), source.values
    top = float(values[-1])
    total = float(weights.sum())
    if top <= 0 or total == 0:
        why = Estimate.undefined("no positive curvature" if total else "the gradient is zero")
        return why, why
    cut = max(len(values) * torch.finfo(torch.float64).eps * top, source.slack)
    inside = values > cut
    lost = float(weights[~inside].sum())
    share = Estimate(lost / total, 0.0, lost / total, f"{source.how}; eigenvalues under {cut:.1e}")
    reducible = float((weights[inside] / values[inside] / 2).sum())
    if lost / (2 * cut) > REMAINING * reducible:
        how = f"{source.how}; the gradient has weight where there is no curvature"
        return Estimate(math.inf, 2 / math.log(1 / REMAINING) * top / cut / 2, math.inf, how), share
    steps = _steps_to(values[inside], weights[inside], reducible, top)
    kappa = _kappa_of_steps(steps)
    # N is a whole number and the weights carry rounding: two steps and their share each way.
    step, relative = 2 / math.log(1 / REMAINING), 2 * source.relative + 1e-6
    low, high = max(1.0, kappa * (1 - relative) - 2 * step), kappa * (1 + relative) + 2 * step
    return Estimate(kappa, low, high, source.how), share


def _effective_sampled(
    curvature: SymmetricOperator, top: Estimate, gradient: Tensor, steps: int
) -> tuple[Estimate, Estimate]:
    if not float(gradient.abs().max()) > 0:
        why = Estimate.undefined("the gradient is zero")
        return why, why
    g = GradientQuadrature.of(curvature, gradient, steps)
    # A Ritz value is known to the rounding of a product, which is measured; n·ε, the cut of a dense
    # eigensolver, would be 0.01 of the largest for 100,000 float32 parameters.
    cut = max(10 * torch.finfo(curvature.dtype).eps * top.value, g.rounding)
    inside = g.nodes > cut
    lost, total = float(g.weights[~inside].sum()), g.squared_norm
    share = Estimate(lost / total, 0.0, 1.0, f"Lanczos from the gradient, {g.quadrature.steps} products", CONFIDENCE)
    how = f"Lanczos from the gradient, {g.quadrature.steps} products"
    nodes, weights = g.nodes[inside], g.weights[inside]
    reducible = float((weights / nodes / 2).sum())
    if reducible == 0:
        return Estimate.undefined("no positive curvature along the gradient"), share
    # The Gauss rule bounds the reducible loss from below (the even derivatives of 1/λ are positive), the Radau rule
    # with a node at 0 bounds what N steps win from above: together they bound N from below, and nothing bounds it
    # from above short of exhausting the Krylov space.
    at_zero, its_weights = g.with_node_at_zero()
    fewest = _steps_to(at_zero, its_weights, reducible, top.low)
    likely = max(fewest, _steps_to(nodes, weights, reducible, top.value))
    high = _kappa_of_steps(likely) * top.high / top.value + 1 if g.exact else math.inf
    low = max(1.0, _kappa_of_steps(fewest) - 1)
    if lost / (2 * cut) > REMAINING * reducible:
        return Estimate(math.inf, low, math.inf, f"{how}; the gradient has weight where there is no curvature"), share
    return Estimate(_kappa_of_steps(likely), low, high, how, CONFIDENCE), share


def _kappa_of_steps(steps: float) -> float:
    return max(1.0, 2 * steps / math.log(1 / REMAINING))


def _steps_to(values: Tensor, weights: Tensor, reducible: float, top: float) -> int:
    """N_ε: the first N for which gradient descent with step 1/top has won all but ε of the reducible loss."""

    def won(steps: int) -> float:
        # (1 − (1−αλ)^{2N})/(2λ), written so that small λ loses no digits; its limit at 0 is αN.
        shrink = -torch.expm1(2 * steps * torch.log1p(-(values / top).clamp(max=1 - 1e-16)))
        gain = torch.where(values > 1e-14 * top, shrink / (2 * values.clamp_min(1e-300)), steps / top)
        return float((weights * gain).sum())

    target = (1 - REMAINING) * reducible * (1 - 1e-12)
    high = 1
    while won(high) < target and high < 2**60:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if won(middle) >= target else (middle, high)
    return high
