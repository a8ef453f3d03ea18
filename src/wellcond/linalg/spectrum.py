"""What is known about a spectrum: all of it, or its ends and bounds for what lies between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wellcond.linalg.eigenvalues import Eigenvalues, eigenvalues
from wellcond.linalg.estimate import CONFIDENCE, Estimate
from wellcond.linalg.operator import SymmetricOperator
from wellcond.linalg.quadrature import SpectralTails, probe, trace


@dataclass(frozen=True)
class WholeSpectrum:
    """All eigenvalues; what remains uncertain is rounding: |true − computed| ≤ slack + relative·|λ|."""

    values: Tensor
    vectors: Tensor
    squared_rows: Tensor
    slack: float
    relative: float
    semidefinite: bool

    how = "exact: all eigenvalues"

    @classmethod
    def of(cls, operator: SymmetricOperator) -> WholeSpectrum:
        """Form the matrix and take it apart."""
        matrix = operator.dense().double()
        if not torch.isfinite(matrix).all():
            raise FloatingPointError("the curvature matrix has entries that are not finite")
        # How far the products were from symmetric measures their rounding; the rest is the eigensolver's.
        asymmetry = float(torch.linalg.matrix_norm(matrix - matrix.T)) / 2
        values, vectors = torch.linalg.eigh((matrix + matrix.T).cpu() / 2)
        eps = torch.finfo(operator.dtype).eps
        slack = asymmetry + 8 * math.sqrt(len(values)) * eps * float(values.abs().max())
        rows = matrix.square().sum(1, keepdim=True).T.cpu()
        return cls(values, vectors, rows, slack, 2 * operator.rounding, operator.positive_semidefinite)

    @property
    def theta(self) -> float:
        return max(1e-6, self.slack / self._top) if self._top > 0 else 1e-6

    @property
    def _top(self) -> float:
        return float(self.values[-1])

    def _eigenvalue(self, x: float) -> Estimate:
        error = self.slack + self.relative * abs(x)
        return Estimate(x, x - error, x + error, self.how)

    def largest(self) -> Estimate:
        return self._eigenvalue(self._top)

    def smallest(self) -> Estimate:
        return self._eigenvalue(float(self.values[0]))

    def top(self, count: int) -> list[Estimate]:
        return [self._eigenvalue(float(x)) for x in self.values.flip(0)[:count]]

    def bottom(self, count: int) -> list[Estimate]:
        return [self._eigenvalue(float(x)) for x in self.values[:count]]

    def kappa_mean(self) -> Estimate:
        mean = self.values if self.semidefinite else self.values.abs()
        return _ratio(self.largest(), self._eigenvalue(float(mean.mean())), self.how)

    def kappa_star(self) -> Estimate:
        cut = max(len(self.values) * torch.finfo(torch.float64).eps * self._top, self.slack)
        kept = self.values[self.values > cut]
        if not len(kept):
            return Estimate.undefined("no eigenvalue is above rounding")
        return _ratio(self.largest(), self._eigenvalue(float(kept[0])), self.how)

    def kappa(self, fraction: float) -> Estimate:
        kept = self.values[self.values > self.theta * self._top].flip(0)
        if not len(kept):
            return Estimate.undefined("no eigenvalue is positive")
        x = float(kept[math.ceil(fraction * len(kept) - 1e-9) - 1])
        return _ratio(self.largest(), self._eigenvalue(x), f"{self.how}; θ = {self.theta:.0e}")

    def negative_fraction(self) -> Estimate:
        if self._top <= 0:
            return Estimate.undefined("the largest eigenvalue is not positive")
        x = float((self.values < -self.theta * self._top).double().mean())
        return Estimate(x, x, x, f"{self.how}; θ = {self.theta:.0e}")

    def fraction_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        exact = (self.values >= x[:, None]).double().mean(1)
        return exact, exact

    def gradient_weights(self, gradient: Tensor) -> Tensor:
        return (self.vectors.T @ gradient.double().cpu()).square()


@dataclass(frozen=True)
class SampledSpectrum:
    """Extreme eigenvalues from one Lanczos run, everything between from random directions."""

    extremes: Eigenvalues
    tails: SpectralTails
    mean: Estimate
    squared_rows: Tensor
    semidefinite: bool

    theta = 1e-2

    @classmethod
    def of(
        cls, operator: SymmetricOperator, *, steps: int, count: int, probes: int, probe_steps: int, seed: int
    ) -> SampledSpectrum:
        """Spend `steps` products on the extremes and `probe_steps` on each of the `probes` directions."""
        semidefinite = operator.positive_semidefinite
        which = "largest" if semidefinite else "both"
        steps = min(steps, operator.size)
        count = max(1, min(count, steps // 4))
        extremes = eigenvalues(operator, count, which, min_products=steps, max_products=steps, seed=seed)
        found = probe(operator, probes, probe_steps, seed=seed + 1)
        ritz = torch.linalg.eigvalsh(extremes.run.tridiagonal())
        tails = SpectralTails(operator.size, [p.quadrature for p in found], ritz)
        if semidefinite:
            mean = trace(found, extremes.run, extremes.upper).scaled(1 / operator.size)
        else:
            mean = _mean_magnitude(tails, extremes)
        # (Av)ᵢ is the inner product of row i with a direction of length 1/√n per coordinate.
        rows = torch.stack([operator.size * p.product.square() for p in found])
        return cls(extremes, tails, mean, rows, semidefinite)

    def largest(self) -> Estimate:
        return self.extremes.largest()

    def smallest(self) -> Estimate:
        if self.semidefinite:
            ritz, rounding = float(self.tails.extremes[0]), self.extremes.run.rounding
            how = "smallest Ritz value of a matrix that should be positive semidefinite"
            return Estimate(ritz, min(ritz, 0.0) - rounding, ritz + rounding, how)
        return self.extremes.smallest()

    def top(self, count: int) -> list[Estimate]:
        falling = self.extremes.values > (0 if self.semidefinite else self._middle)
        return self._listed(falling, self.largest())[:count]

    def bottom(self, count: int) -> list[Estimate]:
        if self.semidefinite:
            return []
        return self._listed(self.extremes.values <= self._middle, self.smallest())[:count]

    @property
    def _middle(self) -> float:
        return float(self.tails.extremes[0] + self.tails.extremes[-1]) / 2

    def _listed(self, chosen: Tensor, first: Estimate) -> list[Estimate]:
        """The extreme one with its own interval, the rest with their residual bounds."""
        e = self.extremes
        known = chosen & (e.error_bounds <= 1e-3 * float(e.values.abs().max()))
        how = f"Lanczos, {e.products} products; an eigenvalue lies in the interval"
        rest = [
            Estimate(float(v), float(v - b), float(v + b), how)
            for v, b in zip(e.values[known], e.error_bounds[known], strict=True)
        ]
        return [first, *(r for r in rest if r.value != first.value)]

    def kappa_mean(self) -> Estimate:
        return _ratio(self.largest(), self.mean, self.mean.how)

    def kappa_star(self) -> Estimate:
        return Estimate.undefined("only from a whole spectrum")

    def _how(self) -> str:
        return f"Chebyshev-Markov-Stieltjes bounds, {self.tails.products} products; θ = {self.theta:.0e}"

    def kappa(self, fraction: float) -> Estimate:
        top = self.largest()
        if top.low <= 0:
            return Estimate.undefined("no eigenvalue is known to be positive")
        grid, low, high = self._upper_tail
        fewest, most = float(low[grid >= self.theta * top.high][0]), float(high[0])
        at_most = grid[high < fraction * fewest]
        at_least = grid[low >= fraction * most]
        best = top.low / (float(at_most[0]) if len(at_most) else top.high)
        worst = top.high / (float(at_least[-1]) if len(at_least) else self.theta * top.low)
        middle = grid[(low + high) / 2 >= fraction * (fewest + most) / 2]
        value = min(max(top.value / float(middle[-1]) if len(middle) else worst, best), worst)
        # κ(ρ) never exceeds 1/θ: an interval that ends there says nothing from above.
        high_end = worst if worst < 1 / self.theta else math.inf
        return Estimate(value, max(1.0, best), high_end, self._how(), CONFIDENCE)

    @cached_property
    def _upper_tail(self) -> tuple[Tensor, Tensor, Tensor]:
        """Thresholds from θλ_max, where κ(ρ) is 1/θ and never more, to the top, and the fractions above them."""
        top = self.largest()
        ends = math.log10(self.theta * top.low), math.log10(top.high)
        grid = torch.logspace(*ends, 300, dtype=torch.float64)
        return grid, *self.tails.fraction_above(grid)

    def negative_fraction(self) -> Estimate:
        if self.semidefinite:
            return Estimate(0.0, 0.0, 0.0, "positive semidefinite")
        top = self.largest()
        if top.low <= 0:
            return Estimate.undefined("no eigenvalue is known to be positive")
        edges = torch.tensor([-self.theta * top.high, -self.theta * top.low], dtype=torch.float64)
        low, high = self.tails.fraction_below(edges)
        fewest, most = float(low[0]), float(high[1])
        return Estimate((fewest + most) / 2, fewest, most, self._how(), CONFIDENCE)

    def fraction_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.tails.fraction_above(x)


def _ratio(over: Estimate, under: Estimate, how: str) -> Estimate:
    """over/under for an `under` that should be positive."""
    if not (over.value > 0 and under.value > 0):
        return Estimate.undefined("no positive curvature")
    low = max(1.0, over.low / under.high)
    high = over.high / under.low if under.low > 0 else math.inf
    return Estimate(over.value / under.value, low, high, how, min(over.confidence, under.confidence))


def _mean_magnitude(tails: SpectralTails, extremes: Eigenvalues) -> Estimate:
    """The mean of |λ| as the area under the tails, ∫₀^∞ #{λ ≥ x} dx + ∫₀^∞ #{λ < −x} dx, over n: a lower and an
    upper sum over a grid, both fractions falling with x."""
    low = high = 0.0
    for reach, fraction, sign in (
        (extremes.upper, tails.fraction_above, 1),
        (-extremes.lower, tails.fraction_below, -1),
    ):
        if not math.isfinite(reach):
            return Estimate.undefined("too few Lanczos steps to bound the spectrum")
        if reach <= 0:
            continue
        inside = torch.logspace(math.log10(reach) - 5, math.log10(reach), 200, dtype=torch.float64)
        grid = torch.cat([torch.zeros(1, dtype=torch.float64), inside])
        fewest, most = fraction(sign * grid)
        widths = grid.diff()
        low += float((widths * fewest[1:]).sum())
        high += float((widths * most[:-1]).sum())
    how = f"mean |λ| by Chebyshev-Markov-Stieltjes bounds, {tails.products} products"
    return Estimate((low + high) / 2, low, high, how, CONFIDENCE)
