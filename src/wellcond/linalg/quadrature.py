"""What short Lanczos runs prove about a spectrum as a whole: traces, and fractions of eigenvalues in an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wellcond.linalg.estimate import CONFIDENCE, Estimate
from wellcond.linalg.lanczos import Lanczos
from wellcond.linalg.vectors import inner


@dataclass(frozen=True)
class Quadrature:
    """The m-point Gauss quadrature of the spectral measure Σ (uᵢᵀv)² δ(λᵢ) of a unit vector v.

    Attributes:
        T: (m, m), the tridiagonal matrix of the Lanczos run from v.
        residual: β_m, what couples T to the rest of the space; 0 if the Krylov space is exhausted, and then the
            quadrature is the measure.
        rounding: how far a node may be off by rounding.
        steps: m, the products it took.
    """

    T: Tensor
    residual: float
    rounding: float
    steps: int

    @classmethod
    def of(cls, run: Lanczos) -> Quadrature:
        """What a Lanczos run says about its start vector; where it started again, what it said before."""
        return cls(run.tridiagonal(), 0.0 if run.exhausted else run.residual, run.rounding, run.steps)

    def nodes_and_weights(self) -> tuple[Tensor, Tensor]:
        """Gauss nodes, rising, and their weights, which sum to 1; (m,) each."""
        theta, S = torch.linalg.eigh(self.T)
        return theta, S[0].square()

    def with_node(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Radau rules: for each x one whose nodes include x (Golub and Meurant, 1994).

        Args:
            x: (g,).

        Returns:
            Nodes, rising, and weights, (g, m + 1) each.
        """
        m = len(self.T)
        theta, S = torch.linalg.eigh(self.T)
        gaps = theta - x[:, None]
        # At a Gauss node itself the rule would put its last entry at infinity: step aside by a rounding error.
        tiny = 1e-14 * float(theta.abs().max()) + 1e-300
        gaps = torch.where(gaps.abs() < tiny, torch.full_like(gaps, tiny), gaps)
        extended = self.T.new_zeros(len(x), m + 1, m + 1)
        extended[:, :m, :m] = self.T
        extended[:, m, m - 1] = extended[:, m - 1, m] = self.residual
        extended[:, m, m] = x + self.residual**2 * (S[-1].square() / gaps).sum(1)
        nodes, vectors = torch.linalg.eigh(extended)
        return nodes, vectors[:, 0, :].square()

    def mass_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Chebyshev, Markov and Stieltjes: the sharp bounds of the measure's mass above each x, (g,) each.

        Of all measures with these 2m moments none has less mass in (x, ∞) than the first, none more in [x, ∞) than
        the second. A node within rounding of x counts for the second only.
        """
        if self.residual == 0.0:
            nodes, weights = self.nodes_and_weights()
        else:
            nodes, weights = self.with_node(x)
            # The prescribed node comes back from the eigensolver with rounding of its own: put it where it belongs.
            nodes = nodes.scatter(1, (nodes - x[:, None]).abs().argmin(1, keepdim=True), x[:, None])
        low = (weights * (nodes > x[:, None] + self.rounding)).sum(1)
        return low, (weights * (nodes >= x[:, None] - self.rounding)).sum(1)


@dataclass(frozen=True)
class Probe:
    """One random direction: its quadrature, itself, and its first product."""

    quadrature: Quadrature
    direction: Tensor
    product: Tensor

    @classmethod
    def of(cls, run: Lanczos) -> Probe:
        """What a Lanczos run from it says; nothing of the run is kept."""
        return cls(Quadrature.of(run), run.basis[0].clone(), run.product_of_start())


def deflated_trace(
    probes: Sequence[Probe],
    deflate: Lanczos,
    largest: float,
    confidence: float = CONFIDENCE,
    dimension: int | None = None,
) -> Estimate:
    """The trace of a positive semidefinite A: exact on a Krylov space already known, sampled outside it.

    tr A = tr(QAQᵀ) + tr B with B = (I−QᵀQ)A(I−QᵀQ). The first term is the trace of T, the second the mean of
    n·vᵀBv over uniform directions v, which takes no product beyond the probes' own. The idea is that of Hutch++
    (Meyer, Musco, Musco and Woodruff 2021); the interval holds at any number of samples, being Laurent and Massart's
    tail bound for Σ μᵢgᵢ² with Σ μᵢ² ≤ largest · tr B (Ann. Statist. 28, 2000, lemma 1).

    Args:
        probes: at least one, independent of `deflate`.
        deflate: the Lanczos run whose space Q is taken out.
        largest: an upper bound of A's largest eigenvalue.
        confidence: probability that the interval holds.
        dimension: of the space in which the probes' directions are uniform, where that is smaller: it must hold all
            that lies outside Q.
    """
    n, samples = deflate.operator.size if dimension is None else dimension, len(probes)
    T = deflate.tridiagonal()
    known, products = float(T.trace()), deflate.steps + samples
    slack = deflate.operator.size * deflate.rounding
    if deflate.steps == deflate.operator.size or not samples:
        return Estimate(known, known - slack, known + slack, f"trace of the whole space, {products} products")
    sampled = max(0.0, n / samples * sum(_outside(p, deflate, T) for p in probes))
    tau = math.log(2 / (1 - confidence))
    c, d = 2 * math.sqrt(largest * tau / samples), 2 * largest * tau / samples
    high = ((c + math.sqrt(c**2 + 4 * sampled)) / 2) ** 2
    low = max(0.0, (-c + math.sqrt(c**2 + 4 * max(0.0, sampled - d))) / 2) ** 2
    how = f"trace: exact on {deflate.steps} Lanczos directions, {samples} random samples outside; {products} products"
    return Estimate(known + sampled, known + low - slack, known + high + slack, how, confidence)


def _outside(p: Probe, deflate: Lanczos, T: Tensor) -> float:
    """vᵀBv from Av alone: with a = Qv it is vᵀAv − 2aᵀQAv + aᵀTa."""
    a = inner(deflate.basis, p.direction).double().cpu()
    b = inner(deflate.basis, p.product).double().cpu()
    return float(inner(p.direction, p.product)) - 2 * float(a @ b) + float(a @ T @ a)


@dataclass(frozen=True)
class SpectralTails:
    """What is proved about how many eigenvalues lie above a threshold.

    Attributes:
        size: n.
        quadratures: of independent uniform directions; with none, the extremes alone say something.
        extremes: Ritz values of any one run; by Cauchy's interlacing at least as many eigenvalues as Ritz values lie
            beyond a threshold.
        rounding: of the Ritz values.
        confidence: probability that the bounds hold, at each threshold.
    """

    size: int
    quadratures: Sequence[Quadrature]
    extremes: Tensor
    rounding: float
    confidence: float = CONFIDENCE

    def count_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the number of eigenvalues that are ≥ x, (g,) each, as fractions of n give them: not whole numbers.

        The mean over directions of the Chebyshev-Markov-Stieltjes bounds, widened by what sampling can do. A set of
        k = fn eigenvectors gets a mean mass from m uniform directions whose tails are under the Chernoff bounds of
        f·χ²/(mk) with mk degrees of freedom: a beta variable is smaller than that gamma one in convex order.
        """
        low = (self.extremes >= x[:, None] + self.rounding).double().sum(1)
        high = self.size - (self.extremes < x[:, None] - self.rounding).double().sum(1)
        if self.quadratures:
            bounds = [q.mass_above(x) for q in self.quadratures]
            least, most = (torch.stack(ends).mean(0) for ends in zip(*bounds, strict=True))
            fewest = torch.maximum(self.limit(least, 0.0), 1 - self.limit(1 - least, 1.0))
            greatest = torch.minimum(self.limit(most, 1.0), 1 - self.limit(1 - most, 0.0))
            low, high = torch.maximum(low, self.size * fewest), torch.minimum(high, self.size * greatest)
        return low.clamp(0, self.size), torch.maximum(low, high).clamp(0, self.size)

    def mean_of(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """The Gauss rules' own estimate of the mean of f over the eigenvalues, as in `DeflatedTails`."""
        rules = [q.nodes_and_weights() for q in self.quadratures]
        return torch.stack([(w * f(nodes)).sum(-1) for nodes, w in rules]).mean(0)

    def limit(self, mean: Tensor, end: float) -> Tensor:
        """The fraction between the mean and the end, 0 or 1, beyond which the mean would be too unlikely, by bisection.

        Chernoff: a mean on the far side of r from f has a probability of at most exp(−(mn/2)(f ln(f/r) − f + r)).
        """
        tau = math.log(2 / (1 - self.confidence)) / (len(self.quadratures) * self.size / 2)
        # A mass of zero to rounding is not known to be less than that.
        r = mean.clamp(torch.finfo(torch.float64).eps, 1)
        near, far = r, torch.full_like(r, end)
        for _ in range(50):
            f = (near + far) / 2
            likely = torch.xlogy(f, f / r) - f + r <= tau
            near, far = torch.where(likely, f, near), torch.where(likely, far, f)
        return far
