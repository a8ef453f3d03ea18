"""What is known about a spectrum: all of it, or its ends and bounds for what lies between."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile

import torch
from torch import Tensor

from wellcond.linalg.deflation import DeflatedTails, Isolated
from wellcond.linalg.eigenvalues import Eigenvalues, eigenvalues
from wellcond.linalg.estimate import CONFIDENCE, Estimate
from wellcond.linalg.operator import SymmetricOperator
from wellcond.linalg.quadrature import deflated_trace
from wellcond.linalg.vectors import NOT_FINITE

SYMMETRIC = {torch.float64: 1e-3, torch.float32: 2e-2}
"""Products that are less symmetric than this, relative to the largest eigenvalue, are wrong and not just rounded: the
double backward of weight_norm, which is wrong, comes to 0.3, float32 on inputs far off center to 2e-3."""

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


@dataclass(frozen=True)
class WholeSpectrum:
    """All eigenvalues; what remains uncertain is rounding: |true − computed| ≤ rounding + relative·|λ|.

    Attributes:
        values: (n,), rising.
        gradient_weights: (n,), the squared component of the operator's gradient along each eigenvector; None without.
        squared_rows: (1, n), squared norms of the matrix's rows.
        rounding, relative: in the unit of the eigenvalues, and relative to each.
        resolution: n·ε of the dtype: what is smaller relative to the largest eigenvalue counts as zero.
        semidefinite: whether negative eigenvalues can only be rounding.
    """

    values: Tensor
    gradient_weights: Tensor | None
    squared_rows: Tensor
    rounding: float
    relative: float
    resolution: float
    semidefinite: bool

    how = "exact: all eigenvalues"

    @classmethod
    def of(cls, operator: SymmetricOperator, gradient: Tensor | None = None) -> WholeSpectrum:
        """Form the matrix and take it apart.

        Raises:
            FloatingPointError: if the matrix is not finite, or not symmetric.
        """
        matrix = operator.dense().cpu().double()
        if not torch.isfinite(matrix).all():
            raise FloatingPointError(NOT_FINITE)
        # How far the products were from symmetric measures their rounding; the rest is the eigensolver's.
        asymmetry = float(torch.linalg.matrix_norm(matrix - matrix.T)) / 2
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        scale = float(values.abs().max())
        check_symmetric(asymmetry, scale, operator.dtype)
        eps = torch.finfo(operator.dtype).eps
        return cls(
            values,
            None if gradient is None else (vectors.T @ gradient.cpu().double()).square(),
            matrix.square().sum(1)[None],
            asymmetry + 8 * math.sqrt(len(values)) * eps * scale,
            2 * operator.rounding,
            len(values) * eps,
            operator.positive_semidefinite,
        )

    @property
    def theta(self) -> float:
        return max(1e-6, self.cut / self._top) if self._top > 0 else 1e-6

    @property
    def _top(self) -> float:
        return float(self.values[-1])

    def _eigenvalue(self, x: float) -> Estimate:
        error = self.rounding + self.relative * abs(x)
        return Estimate(x, x - error, x + error, self.how)

    @property
    def largest(self) -> Estimate:
        return self._eigenvalue(self._top)

    @property
    def smallest(self) -> Estimate:
        return self._eigenvalue(float(self.values[0]))

    def ends(self, count: int) -> tuple[list[Estimate], list[Estimate]]:
        top, bottom = self.values.flip(0)[:count].tolist(), self.values[:count].tolist()
        return [self._eigenvalue(x) for x in top], [self._eigenvalue(x) for x in bottom]

    @property
    def kappa_mean(self) -> Estimate:
        mean = self.values if self.semidefinite else self.values.abs()
        return _ratio(self.largest, self._eigenvalue(float(mean.mean())), self.how)

    @property
    def kappa_star(self) -> Estimate:
        kept = self.values[self.values > self.cut]
        if not len(kept):
            return Estimate.undefined("no eigenvalue is above rounding")
        return _ratio(self.largest, self._eigenvalue(float(kept[0])), self.how)

    @property
    def cut(self) -> float:
        """What an eigenvalue must exceed not to be zero to rounding."""
        return max(self.resolution * self._top, self.rounding)

    def kappa(self, fraction: float) -> Estimate:
        kept = self.values[self.values > self.theta * self._top].flip(0)
        if not len(kept):
            return Estimate.undefined("no eigenvalue is positive")
        x = float(kept[math.ceil(fraction * len(kept) - 1e-9) - 1])
        return _ratio(self.largest, self._eigenvalue(x), f"{self.how}; θ = {self.theta:.0e}")

    @property
    def negative_fraction(self) -> Estimate:
        if self._top <= 0:
            return Estimate.undefined("the largest eigenvalue is not positive")
        x = float((self.values < -self.theta * self._top).double().mean())
        return Estimate(x, x, x, f"{self.how}; θ = {self.theta:.0e}")

    def fraction_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        exact = (self.values >= x[:, None]).double().mean(1)
        return exact, exact


@dataclass(frozen=True)
class SampledSpectrum:
    """Extreme eigenvalues from one Lanczos run, everything between from random directions.

    Attributes:
        largest, smallest: with two-sided intervals.
        top, bottom: the eigenvalues that have converged, falling and rising.
        kappa_mean: by the mean eigenvalue of a semidefinite matrix, else by the mean of |λ|.
        tails: bounds of fractions of eigenvalues.
        squared_rows: (s, n), unbiased samples of the squared norms of the matrix's rows.
        semidefinite: whether negative eigenvalues can only be rounding.
    """

    largest: Estimate
    smallest: Estimate
    top: list[Estimate]
    bottom: list[Estimate]
    kappa_mean: Estimate
    tails: DeflatedTails
    squared_rows: Tensor
    semidefinite: bool

    theta = 1e-2
    values = None
    kappa_star = Estimate.undefined("only from a whole spectrum")

    @property
    def rounding(self) -> float:
        """Under which the norm of a row is rounding."""
        return self.tails.rounding

    @classmethod
    def of(cls, operator: SymmetricOperator, effort: Effort, seed: int) -> SampledSpectrum:
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
        return cls(
            largest=e.largest(),
            smallest=smallest,
            top=_converged(e, slice(count)),
            bottom=_converged(e, slice(count, None)),
            kappa_mean=_ratio(e.largest(), mean, mean.how),
            tails=tails,
            squared_rows=torch.stack(rows),
            semidefinite=semidefinite,
        )

    def ends(self, count: int) -> tuple[list[Estimate], list[Estimate]]:
        return self.top[:count], self.bottom[:count]

    def _how(self) -> str:
        return f"Chebyshev-Markov-Stieltjes bounds, {self.tails.products} products; θ = {self.theta:.0e}"

    def kappa(self, fraction: float) -> Estimate:
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
        return Estimate(value, best, worst if worst < 1 / self.theta else math.inf, self._how(), CONFIDENCE)

    @cached_property
    def _upper_tail(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Thresholds from θλ_max, where κ(ρ) is 1/θ and never more, to the top; bounds of the fractions above them,
        and the Gauss rules' estimate."""
        top = self.largest
        ends = math.log10(self.theta * top.low), math.log10(top.high)
        grid = torch.logspace(*ends, GRID, dtype=torch.float64)
        return grid, *self.tails.fraction_above(grid), self.tails.estimate_above(grid)

    @property
    def negative_fraction(self) -> Estimate:
        if self.semidefinite:
            return Estimate(0.0, 0.0, 0.0, "positive semidefinite")
        top = self.largest
        if top.low <= 0 or math.isinf(top.high):
            return Estimate.undefined("no eigenvalue is known to be positive")
        edges = torch.tensor([-self.theta * top.high, -self.theta * top.low], dtype=torch.float64)
        low, high = self.tails.fraction_below(edges)
        fewest, most = max(0.0, float(low[0])), float(high[1])
        likely = float(1 - self.tails.estimate_above(edges).mean())
        return Estimate(min(max(likely, fewest), most), fewest, most, self._how(), CONFIDENCE)

    def fraction_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.tails.fraction_above(x)


@dataclass(frozen=True)
class Ends:
    """The ends of a spectrum of which nothing else was measured.

    Attributes:
        largest, smallest: eigenvalues.
        rounding: under which the norm of a row is rounding.
    """

    largest: Estimate
    smallest: Estimate
    rounding: float

    theta = 1e-2
    why = "only the ends of the spectrum were measured"

    @classmethod
    def of(cls, e: Eigenvalues) -> Ends:
        """What a run for the largest eigenvalue says of both ends: of the smallest, that it is at most the smallest
        Ritz value."""
        low = float(e.run.ritz()[0][0])
        smallest = Estimate(low, e.lower, low + e.rounding, f"Lanczos, {e.products} products", e.confidence)
        return cls(e.largest(), smallest, e.rounding)

    def kappa(self, fraction: float) -> Estimate:
        return Estimate.undefined(self.why)

    def fraction_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing beyond the ends."""
        return (x <= self.smallest.low).double(), (x <= self.largest.high).double()

    @property
    def squared_rows(self) -> Tensor:
        raise ValueError(f"{self.why}; there are no row norms")


def check_symmetric(asymmetry: float, scale: float, dtype: torch.dtype) -> None:
    """Refuse a matrix whose products contradict each other by more than rounding can."""
    if asymmetry > SYMMETRIC[dtype] * scale:
        raise FloatingPointError(
            f"the second derivative is not symmetric ({asymmetry / scale:.0e} of its size): torch's double backward of "
            "some layer is wrong (weight_norm's is known to be), the network is not the same at every evaluation, or "
            "float32 is too coarse here (measure in float64)"
        )


def _converged(e: Eigenvalues, part: slice) -> list[Estimate]:
    """The known ones from an end inwards, as far as none is missing."""
    most = 1e-3 * float(e.values.abs().max())
    how = f"Lanczos, {e.products} products; an eigenvalue lies in the interval"
    pairs = zip(e.values[part].tolist(), e.error_bounds[part].tolist(), strict=True)
    return [Estimate(v, v - b, v + b, how) for v, b in takewhile(lambda pair: pair[1] <= most, pairs)]


def _ratio(over: Estimate, under: Estimate, how: str) -> Estimate:
    """over/under for an `under` that should be positive; the probabilities of failing add up."""
    if not (over.value > 0 and under.value > 0):
        return Estimate.undefined("no positive curvature")
    low = max(0.0, over.low) / under.high
    high = over.high / under.low if under.low > 0 else math.inf
    return Estimate(over.value / under.value, low, high, how, max(0.0, over.confidence + under.confidence - 1))


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
    likely = tails.estimate_magnitude()
    how = f"mean |λ| by Chebyshev-Markov-Stieltjes bounds, {tails.products} products"
    return Estimate(min(max(likely, low), high), low, high, how, CONFIDENCE)
