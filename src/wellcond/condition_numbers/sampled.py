"""The figures of a curvature of whose spectrum samples are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile

import torch
from torch import Tensor

from wellcond.condition_numbers.figures import Conditioning, check_symmetric, ratio
from wellcond.linalg import (
    CONFIDENCE,
    DeflatedTails,
    Eigenvalues,
    Estimate,
    Isolated,
    SymmetricOperator,
    deflated_trace,
    eigenvalues,
)

THETA = 1e-2

GRID = 120
"""Thresholds in a grid: 60 a decade for κ(ρ), 24 for the mean of |λ|."""

_PART = 1 - (1 - CONFIDENCE) / 6
"""A figure combines at most six uncertain parts: at this probability each, all hold with `CONFIDENCE`."""


@dataclass(frozen=True)
class Effort:
    """How many products may be spent where a spectrum is not computed whole.

    Attributes:
        extremes: Lanczos steps for the extreme eigenvalues. All are spent: further ones tighten the bound of what was
            missed after the eigenvalues themselves have converged.
        count: eigenvalues to list at each end.
        probes, probe_steps: random directions for fractions of eigenvalues and traces, beside the one that the
            extremes start from, and products for each.
        trace_probes: random directions where only a trace is wanted, one product each.
        gradient_steps: Lanczos steps from the gradient, for κ_eff.
    """

    extremes: int = 80
    count: int = 5
    probes: int = 8
    probe_steps: int = 24
    trace_probes: int = 32
    gradient_steps: int = 40

    def __post_init__(self) -> None:
        least = min(self.count, self.probes, self.probe_steps, self.trace_probes, self.gradient_steps)
        if least < 1 or self.extremes < 20:
            raise ValueError(f"got {self}; extremes is at least 20, the rest at least 1")


@dataclass(frozen=True, kw_only=True)
class SampledConditioning(Conditioning):
    """Extreme eigenvalues from one Lanczos run, everything between from random directions.

    Of the eigenvalues at both ends those are listed that have converged. The mean eigenvalue is that of a semidefinite
    matrix, else the mean of |λ|.

    Attributes:
        tails: bounds of fractions of eigenvalues.
    """

    tails: DeflatedTails = field(repr=False)

    @classmethod
    def of(cls, operator: SymmetricOperator, effort: Effort, seed: int) -> SampledConditioning:
        """Spend the products that `effort` allows.

        Raises:
            FloatingPointError: if a product is not finite, or the products are not symmetric.
        """
        semidefinite, steps = operator.positive_semidefinite, min(effort.extremes, operator.size)
        count = max(1, min(effort.count, steps // 4))
        e = eigenvalues(
            operator,
            count,
            "largest" if semidefinite else "both",
            min_products=steps,
            max_products=steps,
            seed=seed,
            confidence=_PART,
        )
        check_symmetric(e.run.rounding, e.run.scale, operator.dtype)
        isolated = Isolated.of(e.run)
        probes = isolated.probe(operator, effort.probes, effort.probe_steps, seed=seed + 1)
        # One step resolves nothing: it is there for traces alone.
        resolving = [p.quadrature for p in probes] if effort.probe_steps > 1 else []
        tails = DeflatedTails.of(isolated, resolving, e.run.rounding, _PART)
        smallest, mean = e.smallest(), _mean_magnitude(tails, 0.0 if semidefinite else e.lower, e.upper)
        if semidefinite:
            least, error = float(isolated.theta[0]), e.run.rounding
            how = "smallest Ritz value of a matrix that should be positive semidefinite"
            smallest = Estimate(least, min(least, 0.0) - error, least + error, how)
            sampled = deflated_trace(probes, e.run, e.upper, _PART, isolated.remaining)
            mean = _both(sampled.scaled(1 / operator.size), mean)
        # (Av)ᵢ is the inner product of row i with a direction of length 1/√n per coordinate; of the isolated
        # eigenpairs the row norms are known.
        known = isolated.values.square().to(operator.dtype).to(operator.device) @ isolated.vectors.square()
        rows = [operator.size * e.run.product_of_start().square()]
        rows += [known + isolated.remaining * p.product.square() for p in probes]
        top = e.largest()
        return cls(
            size=operator.size,
            largest=top,
            smallest=smallest,
            top=_converged(e, slice(count)),
            bottom=_converged(e, slice(count, None)),
            kappa_mean=ratio(top, mean, mean.how),
            kappa_star=Estimate.undefined("only from a whole spectrum"),
            negative_fraction=_negative_fraction(tails, top, semidefinite),
            theta=THETA,
            products=tails.products,
            rounding=e.run.rounding,
            squared_rows=torch.stack(rows),
            tails=tails,
        )

    def _kappa(self, fraction: float) -> Estimate:
        top = self.largest
        if top.low <= 0 or math.isinf(top.high):
            return Estimate.undefined("no eigenvalue is known to be positive")
        grid, low, high, likely = self._upper_tail
        fewest, most = float(low[grid >= self.theta * top.high][0]), float(high[0])
        # Fractions are of whole numbers: as much as ρ of them is not to be missed by a rounding error.
        fraction -= 1e-9
        at_most = grid[high < fraction * fewest]
        at_least = grid[low >= fraction * most]
        best = max(1.0, top.low / (float(at_most[0]) if len(at_most) else top.high))
        worst = top.high / (float(at_least[-1]) if len(at_least) else self.theta * top.low)
        crossed = grid[likely >= fraction * likely[0]]
        value = min(max(top.value / float(crossed[-1]), best), worst)
        # κ(ρ) never exceeds 1/θ: an interval that ends there says nothing from above.
        return Estimate(value, best, worst if worst < 1 / self.theta else math.inf, _how(self.tails), CONFIDENCE)

    @cached_property
    def _upper_tail(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Thresholds from θλ_max, where κ(ρ) is 1/θ and never more, to the top; bounds of the fractions above them,
        and the Gauss rules' estimate."""
        top = self.largest
        ends = math.log10(self.theta * top.low), math.log10(top.high)
        grid = torch.logspace(*ends, GRID, dtype=torch.float64)
        return grid, *self.tails.fraction_above(grid), self.tails.estimate_above(grid)

    def _fraction_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.tails.fraction_above(x)


def _how(tails: DeflatedTails) -> str:
    return f"Chebyshev-Markov-Stieltjes bounds, {tails.products} products; θ = {THETA:.0e}"


def _negative_fraction(tails: DeflatedTails, top: Estimate, semidefinite: bool) -> Estimate:
    if semidefinite:
        return Estimate.exactly(0.0, "positive semidefinite")
    if top.low <= 0 or math.isinf(top.high):
        return Estimate.undefined("no eigenvalue is known to be positive")
    edges = torch.tensor([-THETA * top.high, -THETA * top.low], dtype=torch.float64)
    low, high = tails.fraction_below(edges)
    fewest, most = max(0.0, float(low[0])), float(high[1])
    likely = float(1 - tails.estimate_above(edges).mean())
    return Estimate(min(max(likely, fewest), most), fewest, most, _how(tails), CONFIDENCE)


def _converged(e: Eigenvalues, part: slice) -> list[Estimate]:
    """The known ones from an end inwards, as far as none is missing."""
    most = 1e-3 * float(e.values.abs().max())
    how = f"Lanczos, {e.products} products; an eigenvalue lies in the interval"
    pairs = zip(e.values[part].tolist(), e.error_bounds[part].tolist(), strict=True)
    return [Estimate(v, v - b, v + b, how) for v, b in takewhile(lambda pair: pair[1] <= most, pairs)]


def _both(first: Estimate, second: Estimate) -> Estimate:
    """The value of the first, in the intervals of both."""
    low, high = max(first.low, second.low), min(first.high, second.high)
    if not second.defined or low > high:
        return first
    return replace(first, value=min(max(first.value, low), high), low=low, high=high)


def _mean_magnitude(tails: DeflatedTails, lower: float, upper: float) -> Estimate:
    """The mean of |λ| as the area under the tails, ∫₀^∞ #{λ ≥ x} dx + ∫₀^∞ #{λ < −x} dx, over n: a lower and an
    upper sum over a grid, both fractions falling with x."""
    if not math.isfinite(upper - lower):
        return Estimate.undefined("too few Lanczos steps to bound the spectrum")
    low = high = 0.0
    for reach, fraction, sign in ((upper, tails.fraction_above, 1), (-lower, tails.fraction_below, -1)):
        if reach <= 0:
            continue
        inside = torch.logspace(math.log10(reach) - 5, math.log10(reach), GRID, dtype=torch.float64)
        grid = torch.cat([torch.zeros(1, dtype=torch.float64), inside])
        fewest, most = fraction(sign * grid)
        widths = grid.diff()
        low += float((widths * fewest[1:]).sum())
        high += float((widths * most[:-1]).sum())
    likely = float(tails.mean_of(Tensor.abs))
    how = f"mean |λ| by Chebyshev-Markov-Stieltjes bounds, {tails.products} products"
    return Estimate(min(max(likely, low), high), low, high, how, CONFIDENCE)
