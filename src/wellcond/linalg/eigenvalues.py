"""Extreme eigenvalues, with what the iteration proves about them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wellcond.linalg.estimate import CONFIDENCE, Estimate
from wellcond.linalg.lanczos import Lanczos
from wellcond.linalg.operator import SymmetricOperator
from wellcond.linalg.vectors import RandomDirections

MINIMUM_STEPS = 20
"""By default no run that stops earlier is believed, however small its residuals: a residual says that some
eigenvalue is near, not that it is the largest (theory, section 2.4)."""

EVALUATION = 32.0
"""Roundings, relative to the largest eigenvalue, by which a matrix evaluated in floating point may differ from the
exact one and still be symmetric: networks on raw inputs in float32 came to 14."""


@dataclass(frozen=True)
class Eigenvalues:
    """Some eigenvalues of a symmetric operator and two kinds of statement about them (theory, section 2.4).

    *Proved*: within `error_bounds[i]` of `values[i]` lies an eigenvalue. *With probability* `confidence` over the
    random start: no eigenvalue is above `upper`, none below `lower`. The second kind is what says that the largest
    was found.

    Attributes:
        values: (k,), in the order that `which` names: "largest" falling, "smallest" rising, "magnitude" falling in
            absolute value, "both" the k largest falling and then the k smallest rising.
        error_bounds: (k,), in the unit of the values: the residual norm ‖Au − θu‖ by the Lanczos relation, and the
            measured rounding of the products.
        vectors: (n, k), orthonormal columns.
        converged: (k,), whether the bound is within the tolerance asked for.
        products: matrix-vector products spent.
        lower, upper: bounds of the whole spectrum.
        rounding: how far rounding may move a value: what the run measured, and what the precision of the numbers does
            to the matrix itself, which no run can see.
        confidence: probability that `lower` and `upper` hold together; 1 if the whole space was searched.
        run: the Lanczos run itself, for what else its space says.
    """

    values: Tensor
    error_bounds: Tensor
    vectors: Tensor
    converged: Tensor
    products: int
    lower: float
    upper: float
    rounding: float
    confidence: float
    run: Lanczos = field(repr=False)

    def largest(self) -> Estimate:
        """The largest eigenvalue: at least its Ritz value, a Rayleigh quotient, less rounding; at most `upper`."""
        i = int(self.values.argmax())
        return self._estimate(i, float(self.values[i]) - self.rounding, self.upper)

    def smallest(self) -> Estimate:
        """The smallest (most negative) eigenvalue."""
        i = int(self.values.argmin())
        return self._estimate(i, self.lower, float(self.values[i]) + self.rounding)

    def _estimate(self, i: int, low: float, high: float) -> Estimate:
        how = f"Lanczos, {self.products} products; residual bound {float(self.error_bounds[i]):.1e}"
        return Estimate(float(self.values[i]), low, high, how, self.confidence)


def eigenvalues(
    operator: SymmetricOperator,
    k: int = 1,
    which: str = "largest",
    tol: float = 1e-3,
    *,
    min_products: int = MINIMUM_STEPS,
    max_products: int = 300,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Eigenvalues:
    """Extreme eigenvalues by Lanczos with full reorthogonalization from a random start.

    A repeated eigenvalue is listed once, unless the Krylov space is exhausted and the run goes on beyond it.

    Args:
        operator: symmetric, n × n.
        k: how many at each end asked for, 1 ≤ k ≤ n.
        which: "largest" or "smallest" (algebraic), "both" (k at each end), or "magnitude".
        tol: stop when every residual bound is at most `tol` times the largest |eigenvalue| seen.
        min_products: take at least so many Lanczos steps; more of them tighten `lower` and `upper`.
        max_products: stop at this many steps in any case; `converged` says which bounds are met.
        seed: of the random start.
        confidence: probability for `upper` and `lower` together.

    Raises:
        ValueError: if k, which, tol or max_products make no sense.

    Source: Kuczyński and Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos algorithms with a
    random start", SIAM J. Matrix Anal. Appl. 13 (1992), theorem 4.2, for the probability.

    >>> import torch
    >>> from wellcond.linalg import MatrixOperator
    >>> e = eigenvalues(MatrixOperator(torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))), k=2)
    >>> [round(v, 2) for v in e.values.tolist()]
    [100.0, 99.0]
    """
    n = operator.size
    if which not in ("largest", "smallest", "both", "magnitude"):
        raise ValueError(f'got which={which!r}; it is "largest", "smallest", "both" or "magnitude"')
    if not 1 <= k <= n:
        raise ValueError(f"got k={k}; an operator of size {n} has 1 to {n} eigenvalues to ask for")
    if not tol > 0 or not 0 < confidence < 1:
        raise ValueError(f"got tol={tol}, confidence={confidence}; both are above 0, a confidence below 1")
    if max_products < _count(n, k, which):
        raise ValueError(f"got max_products={max_products}, too few for {_count(n, k, which)} eigenvalues")

    directions = RandomDirections(n, operator.dtype, operator.device, seed)
    run = Lanczos(operator, directions.draw(), restart=directions)
    checks = 0
    while True:
        steps = max(min_products - run.steps, 1 + run.steps // 10)
        run.extend(min(steps, max_products - run.steps))
        checks += 1
        theta, S = torch.linalg.eigh(run.tridiagonal())
        chosen = _choose(theta, k, which)
        residuals = run.residual * S[-1, chosen].abs()
        scale = float(theta.abs().max())
        enough = len(chosen) == _count(n, k, which) and float(residuals.max()) <= tol * scale
        if run.finished or run.steps >= max_products or enough:
            break

    vectors = run.basis.T @ S[:, chosen].to(run.basis)
    rounding = run.rounding + EVALUATION * torch.finfo(operator.dtype).eps * scale
    bounds = residuals + rounding
    # Stopping at the j-th look, which depends on what was seen: a share 6/(πj)² of the failures for each look.
    missed = _missed(run, theta, (1 - confidence) * 6 / (math.pi * checks) ** 2)
    return Eigenvalues(
        values=theta[chosen],
        error_bounds=bounds,
        vectors=vectors,
        converged=bounds <= tol * scale,
        products=run.steps,
        lower=float(theta[0]) - missed - rounding,
        upper=float(theta[-1]) + missed + rounding,
        rounding=rounding,
        confidence=1.0 if run.steps == n else confidence,
        run=run,
    )


def _count(n: int, k: int, which: str) -> int:
    return min(2 * k, n) if which == "both" else k


def _choose(theta: Tensor, k: int, which: str) -> Tensor:
    """Indices of the wanted Ritz values (theta rises), in the documented order."""
    m = len(theta)
    rising, falling = torch.arange(m), torch.arange(m).flip(0)
    if which == "largest":
        return falling[:k]
    if which == "smallest":
        return rising[:k]
    if which == "magnitude":
        return theta.abs().argsort(descending=True)[:k]
    top = falling[: min(k, m)]
    return torch.cat([top, rising[: min(k, m - len(top))]])


def _missed(run: Lanczos, theta: Tensor, failure: float) -> float:
    """How far beyond either extreme Ritz value an eigenvalue may lie, but for the probability `failure`.

    A random start misses the top of the spectrum by more than η·(λ_max − λ_min) with a probability of at most
    1.648·√n·exp(−√η(2m−1)). Either end falls short by η times the true spread, which is therefore at most the spread
    of the Ritz values over 1 − 2η. In an exhausted space an eigenvalue can hide only behind a start that is almost
    orthogonal to its eigenvector, by less than failure/√n with a probability of at most `failure`.
    """
    n, spread = run.operator.size, float(theta[-1] - theta[0])
    if run.steps == n:
        return 0.0
    if run.exhausted:
        return run.rounding * math.sqrt(n) / failure
    eta = (math.log(2 * 1.648 * math.sqrt(n) / failure) / (2 * run.steps - 1)) ** 2
    return eta * spread / (1 - 2 * eta) if eta < 0.5 else math.inf
