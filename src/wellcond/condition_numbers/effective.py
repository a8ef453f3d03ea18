"""κ_eff, what gradient descent feels: how the gradient is spread over the eigenvalues of a semidefinite curvature."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wellcond.condition_numbers.figures import Conditioning, check_symmetric
from wellcond.condition_numbers.sampled import Effort
from wellcond.condition_numbers.whole import HOW, WholeConditioning
from wellcond.linalg import Estimate, Lanczos, Quadrature, SymmetricOperator, eigenvalues, norm

REMAINING = 0.01
"""ε of κ_eff: the fraction of the reducible loss that gradient descent is to leave."""

MOST = 2**60
"""Steps after which gradient descent counts as never there."""


def effective(
    operator: SymmetricOperator,
    curvature: SymmetricOperator | None,
    gradient: Tensor | None,
    found: Conditioning,
    effort: Effort,
    seed: int,
) -> tuple[Estimate, Estimate]:
    """κ_eff, and the gradient's weight outside the range."""
    if gradient is None:
        return _undefined("this operator has no gradient")
    if curvature is None:
        return _undefined("no positive semidefinite curvature: the loss is not split into output and target")
    if not norm(gradient) > 0:
        return _undefined("the gradient is zero")
    own = curvature is operator
    if isinstance(found, WholeConditioning):
        return _effective_whole(found if own else WholeConditioning.of(curvature, gradient))
    top = found.largest if own else _largest(curvature, effort, seed)
    return _effective_sampled(curvature, top, gradient, effort.gradient_steps)


def _undefined(why: str) -> tuple[Estimate, Estimate]:
    return Estimate.undefined(why), Estimate.undefined(why)


def _largest(curvature: SymmetricOperator, effort: Effort, seed: int) -> Estimate:
    """λ_max of a curvature of which nothing else is wanted: never from the gradient's run (theory, section 2.4)."""
    steps = min(effort.extremes, curvature.size)
    e = eigenvalues(curvature, min_products=steps, max_products=steps, seed=seed)
    check_symmetric(e.run.rounding, e.run.scale, curvature.dtype)
    return e.largest()


def _effective_whole(found: WholeConditioning) -> tuple[Estimate, Estimate]:
    assert found.gradient_weights is not None
    error = found.rounding + found.relative * found.spectrum
    model = _Model.of(found.spectrum, found.gradient_weights, error, found.cut, known=True)
    # An eigenvalue under the cut may be tiny or zero: the share without any curvature is at most this.
    outside = model.outside(found.resolution, f"{HOW}; under {found.cut:.1e}")
    return model.kappa(found.largest, HOW), outside


def _effective_sampled(
    curvature: SymmetricOperator, top: Estimate, gradient: Tensor, steps: int
) -> tuple[Estimate, Estimate]:
    quadrature, squared = Quadrature.of(Lanczos(curvature, gradient).extend(steps)), norm(gradient) ** 2
    nodes, weights = quadrature.nodes_and_weights()
    exact, error = quadrature.residual == 0.0, torch.full_like(nodes, quadrature.rounding)
    # A Ritz value is known to the rounding of a product, which is measured; n·ε, the cut of a dense
    # eigensolver, would be 0.01 of the largest for 100,000 float32 parameters.
    model = _Model.of(nodes, weights * squared, error, 10 * quadrature.rounding, known=exact)
    how = f"Lanczos from the gradient, {quadrature.steps} products"
    most = 1 - float(quadrature.mass_above(nodes.new_tensor([model.cut]))[0])
    winning = None
    if not exact:
        # The Gauss rule bounds the reducible loss from below (the even derivatives of 1/λ are positive), the Radau
        # rule with a node at 0 bounds what N steps win from above: together they bound N from below, and nothing
        # bounds it from above short of exhausting the Krylov space.
        nodes, weights = quadrature.with_node(nodes.new_zeros(1))
        winning = nodes[0].clamp_min(0), weights[0] * squared
    return model.kappa(top, how, winning), model.outside(most, f"{how}; eigenvalues under {model.cut:.1e}")


@dataclass(frozen=True)
class _Model:
    """The quadratic model along the gradient: w/(2λ) is to be won on each direction.

    Attributes:
        values, weights: λ and w of the directions with curvature.
        error: how far each λ may be off.
        lost: weight on directions that have no curvature to rounding.
        cut: under which a direction has no curvature to rounding.
        known: whether the directions are all there are; else nothing bounds κ_eff from above.
    """

    values: Tensor
    weights: Tensor
    error: Tensor
    lost: float
    cut: float
    known: bool

    @classmethod
    def of(cls, values: Tensor, weights: Tensor, error: Tensor, cut: float, *, known: bool) -> _Model:
        """From all λ and w, those under the cut too."""
        inside = values > cut
        return cls(values[inside], weights[inside], error[inside], float(weights[~inside].sum()), cut, known)

    def outside(self, most: float, how: str) -> Estimate:
        """The share of the weight without curvature, no more than `most` or what is seen."""
        flat = self.lost / (self.lost + float(self.weights.sum()))
        return Estimate(flat, 0.0, max(flat, most), how)

    def kappa(self, top: Estimate, how: str, winning: tuple[Tensor, Tensor] | None = None) -> Estimate:
        """κ_eff with what bounds it.

        Args:
            top: λ_max.
            how: the method.
            winning: nodes and weights that bound from above what steps win, if not the directions themselves.
        """
        if not len(self.values):
            return Estimate.undefined("no positive curvature along the gradient")
        less, more = (self.values - self.error).clamp_min(0), self.values + self.error
        zero = self.values.new_zeros(1)
        nodes, weights = winning or (torch.cat([zero, less]), torch.cat([zero + self.lost, self.weights]))
        reducible = self._reducible(self.values)
        fewest = _steps_to(nodes, weights, self._reducible(more), max(top.low, 1e-300))
        low = max(1.0, _kappa_of_steps(fewest - 1))
        if self.known and self.lost / (2 * self.cut) > REMAINING * reducible:
            why = f"{how}; the gradient has weight where there is no curvature"
            return Estimate(math.inf, low, math.inf, why, top.confidence)
        value = _kappa_of_steps(max(fewest, _steps_to(self.values, self.weights, reducible, top.value)))
        # Weight under the cut belongs to eigenvalues of unknown size. It does not matter if it would not even at a
        # ten-thousandth of the cut.
        certain = self.known and float(less.min()) > 0 and 1e4 * self.lost / (2 * self.cut) <= REMAINING * reducible
        high = math.inf
        if certain:
            high = _kappa_of_steps(_steps_to(more, self.weights, self._reducible(less), top.high) + 1)
        return Estimate(value, low, max(high, value), how, top.confidence)

    def _reducible(self, values: Tensor) -> float:
        """The loss to be won, were these the λ."""
        return float((self.weights / values / 2).sum())


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
    steps = bisect.bisect_left(range(MOST + 1), target, lo=1, key=won)
    return steps if steps <= MOST else math.inf
