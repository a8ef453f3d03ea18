"""How well conditioned a curvature is: the figures of theory section 2.2, each with its interval and its origin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wellcond.display import Table
from wellcond.linalg import (
    DENSE_LIMIT,
    Effort,
    Eigenvalues,
    Ends,
    Estimate,
    GradientQuadrature,
    SampledSpectrum,
    SymmetricOperator,
    WholeSpectrum,
    check_operator,
    check_symmetric,
    eigenvalues,
)

REMAINING = 0.01
"""ε of κ_eff: the fraction of the reducible loss that gradient descent is to leave."""


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
    spectrum: Tensor | None = field(repr=False)
    products: int
    _source: WholeSpectrum | SampledSpectrum | Ends = field(repr=False)

    @classmethod
    def of_ends(cls, e: Eigenvalues, size: int) -> Conditioning:
        """What a run for the largest eigenvalue says: both ends, the smallest from above, and nothing between."""
        ends = Ends.of(e)
        largest, smallest = ends.ends
        nothing = Estimate.undefined(ends.why)
        return cls(
            size=size,
            largest=largest,
            smallest=smallest,
            top=[],
            bottom=[],
            kappa_mean=nothing,
            kappa_star=nothing,
            kappa_effective=nothing,
            outside_range=nothing,
            negative_fraction=nothing,
            theta=ends.theta,
            spectrum=None,
            products=e.products,
            _source=ends,
        )

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

    def _repr_html_(self) -> str:
        rows = [
            ("λ_max", self.largest, self.largest.with_error()),
            ("λ_min", self.smallest, self.smallest.with_error()),
            ("negative fraction", self.negative_fraction, str(self.negative_fraction)),
            *((f"κ({fraction:g})", e := self.kappa(fraction), str(e)) for fraction in (0.5, 0.9)),
            ("κ̄", self.kappa_mean, str(self.kappa_mean)),
            ("κ*", self.kappa_star, str(self.kappa_star)),
            ("κ_eff", self.kappa_effective, str(self.kappa_effective)),
        ]
        size = f"{self.size:,} eigenvalues, {self.products:,} products, θ = {self.theta:.0e}"
        return Table(["", "figure", "how"], [(name, shown, e.how) for name, e, shown in rows], size).html()

    @property
    def rounding(self) -> float:
        """Rounding of the products, in the unit of the eigenvalues: what a row norm must exceed not to be zero."""
        return self._source.rounding

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
    check_operator(operator)
    effort = effort or Effort()
    spent = operator.products
    whole = operator.size <= dense_limit
    gradient = operator.gradient() if effective else None
    curvature = operator.semidefinite() if gradient is not None else None
    # κ_eff is made of the gradient's weights on the semidefinite curvature: on this one's own, where it is.
    own = gradient if curvature is operator else None
    with operator.keeping(effort.extremes):
        source: WholeSpectrum | SampledSpectrum = (
            WholeSpectrum.of(operator, own) if whole else SampledSpectrum.of(operator, effort, seed)
        )
        kappa_effective, outside, extra = _effective(operator, curvature, gradient, source, effort, seed)
    if not effective:
        kappa_effective = outside = Estimate.undefined("not asked for")
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


def _effective(
    operator: SymmetricOperator,
    curvature: SymmetricOperator | None,
    gradient: Tensor | None,
    source: WholeSpectrum | SampledSpectrum,
    effort: Effort,
    seed: int,
) -> tuple[Estimate, Estimate, int]:
    """κ_eff, the gradient's weight outside the range, and the products this took elsewhere than in `operator`."""
    why = ""
    if gradient is None:
        why = "this operator has no gradient"
    elif curvature is None:
        why = "no positive semidefinite curvature: the loss is not split into output and target"
    elif not float(gradient.abs().max()) > 0:
        why = "the gradient is zero"
    if why or curvature is None or gradient is None:
        return Estimate.undefined(why), Estimate.undefined(why), 0
    spent = curvature.products
    if isinstance(source, WholeSpectrum):
        whole = source if curvature is operator else WholeSpectrum.of(curvature, gradient)
        effective = _effective_whole(whole)
    else:
        top = source.largest() if curvature is operator else _largest(curvature, effort, seed)
        effective = _effective_sampled(curvature, top, gradient, effort.gradient_steps)
    return *effective, 0 if curvature is operator else curvature.products - spent


def _largest(curvature: SymmetricOperator, effort: Effort, seed: int) -> Estimate:
    """λ_max of a curvature of which nothing else is wanted: never from the gradient's run (theory, section 2.4)."""
    steps = min(effort.extremes, curvature.size)
    e = eigenvalues(curvature, min_products=steps, max_products=steps, seed=seed)
    check_symmetric(e.run.rounding, e.run.scale, curvature.dtype)
    return e.largest()


def _effective_whole(source: WholeSpectrum) -> tuple[Estimate, Estimate]:
    assert source.gradient_weights is not None
    values, weights, top = source.values, source.gradient_weights, source.largest()
    inside = values > source.cut
    lost, total = float(weights[~inside].sum()), float(weights.sum())
    flat = lost / total
    # An eigenvalue under the cut may be tiny or zero: the share without any curvature is at most this.
    share = Estimate(flat, 0.0, max(flat, source.resolution), f"{source.how}; under {source.cut:.1e}")
    error = source.slack + source.relative * values[inside]
    model = _Model(values[inside], weights[inside], error, lost)
    return model.kappa(top, source.cut, source.how, known=True), share


def _effective_sampled(
    curvature: SymmetricOperator, top: Estimate, gradient: Tensor, steps: int
) -> tuple[Estimate, Estimate]:
    g = GradientQuadrature.of(curvature, gradient, steps)
    # A Ritz value is known to the rounding of a product, which is measured; n·ε, the cut of a dense
    # eigensolver, would be 0.01 of the largest for 100,000 float32 parameters.
    cut = 10 * g.quadrature.rounding
    inside = g.nodes > cut
    how = f"Lanczos from the gradient, {g.quadrature.steps} products"
    lost = float(g.weights[~inside].sum())
    most = 1 - float(g.quadrature.mass_above(torch.tensor([cut], dtype=torch.float64))[0])
    flat = lost / g.squared_norm
    share = Estimate(flat, 0.0, max(flat, most), f"{how}; eigenvalues under {cut:.1e}")
    error = torch.full_like(g.nodes[inside], g.quadrature.rounding)
    model = _Model(g.nodes[inside], g.weights[inside], error, lost)
    # The Gauss rule bounds the reducible loss from below (the even derivatives of 1/λ are positive), the Radau rule
    # with a node at 0 bounds what N steps win from above: together they bound N from below, and nothing bounds it
    # from above short of exhausting the Krylov space.
    winning = None if g.exact else g.with_node_at_zero()
    return model.kappa(top, cut, how, known=g.exact, winning=winning), share


@dataclass(frozen=True)
class _Model:
    """The quadratic model along the gradient: w/(2λ) is to be won on each direction.

    Attributes:
        values, weights: λ and w of the directions with curvature.
        error: how far each λ may be off.
        lost: weight on directions that have no curvature to rounding.
    """

    values: Tensor
    weights: Tensor
    error: Tensor
    lost: float

    def kappa(
        self,
        top: Estimate,
        cut: float,
        how: str,
        *,
        known: bool,
        winning: tuple[Tensor, Tensor] | None = None,
    ) -> Estimate:
        """κ_eff with what bounds it.

        Args:
            top: λ_max.
            cut: under which a direction has no curvature to rounding.
            how: the method.
            known: whether the directions are all there are; else nothing bounds κ_eff from above.
            winning: nodes and weights that bound from above what steps win, if not the directions themselves.
        """
        if not len(self.values):
            return Estimate.undefined("no positive curvature along the gradient")
        less, more = (self.values - self.error).clamp_min(0), self.values + self.error
        zero = self.values.new_zeros(1)
        nodes, weights = winning or (torch.cat([zero, less]), torch.cat([zero + self.lost, self.weights]))
        reducible = float((self.weights / self.values / 2).sum())
        fewest = _steps_to(nodes, weights, float((self.weights / more / 2).sum()), max(top.low, 1e-300))
        low = max(1.0, _kappa_of_steps(fewest - 1))
        if known and self.lost / (2 * cut) > REMAINING * reducible:
            why = f"{how}; the gradient has weight where there is no curvature"
            return Estimate(math.inf, low, math.inf, why, top.confidence)
        value = _kappa_of_steps(max(fewest, _steps_to(self.values, self.weights, reducible, top.value)))
        # Weight under the cut belongs to eigenvalues of unknown size. It does not matter if it would not even at a
        # ten-thousandth of the cut.
        certain = known and float(less.min()) > 0 and 1e4 * self.lost / (2 * cut) <= REMAINING * reducible
        high = math.inf
        if certain:
            most = _steps_to(more, self.weights, float((self.weights / less / 2).sum()), top.high)
            high = _kappa_of_steps(most + 1)
        return Estimate(value, low, max(high, value), how, top.confidence)


def _kappa_of_steps(steps: float) -> float:
    return max(1.0, 2 * steps / math.log(1 / REMAINING))


def _steps_to(values: Tensor, weights: Tensor, reducible: float, top: float) -> float:
    """N_ε: the first N for which gradient descent with step 1/top has won all but ε of the reducible loss; infinite
    where it never does."""

    def won(steps: float) -> float:
        # (1 − (1−αλ)^{2N})/(2λ), written so that small λ loses no digits; its limit at 0 is αN.
        shrink = -torch.expm1(2 * steps * torch.log1p(-(values / top).clamp(max=1 - 1e-16)))
        gain = torch.where(values > 1e-14 * top, shrink / (2 * values.clamp_min(1e-300)), steps / top)
        return float((weights * gain).sum())

    target = (1 - REMAINING) * reducible * (1 - 1e-12)
    high = 1
    while won(high) < target:
        high *= 2
        if high > 2**60:
            return math.inf
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if won(middle) >= target else (middle, high)
    return high
