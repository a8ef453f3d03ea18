"""Extreme eigenvalues, with what the iteration proves about them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wellcond.linalg.estimate import CONFIDENCE, Estimate
from wellcond.linalg.lanczos import Lanczos
from wellcond.linalg.operator import SymmetricOperator
from wellcond.linalg.vectors import RandomDirections, norm

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
    missed: Tensor
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
    verify: bool = True,
    confidence: float = CONFIDENCE,
    start: Tensor | None = None,
    min_products: int = 1,
    max_products: int | None = None,
    max_basis: int | None = None,
    seed: int = 0,
) -> Eigenvalues:
    """Extreme eigenvalues."""
    n = operator.size
    wanted = _Wanted(which, k, n)
    count = wanted.count
    capacity = max(max_basis or max(3 * count + 20, 60), min_products)
    max_products = max_products or max(300, 20 * count)
    directions = RandomDirections(n, operator.dtype, operator.device, seed)
    v, share = directions.draw(), 1.0
    if start is not None:
        v, share = _mixed(start, v, directions)
    run = Lanczos(operator, v, restart=directions, capacity=capacity, share=share)
    while True:
        steps = max(min_products - run.steps, 1 + run.unseen[-1].steps // 10)
        run.extend(min(steps, max_products - run.steps))
        theta, S, bounds = run.ritz()
        scale = float(theta.abs().max())
        chosen = wanted.choose(theta)
        margins = bounds[chosen].clamp_min(tol * scale)
        claims = wanted.claims(theta[chosen], margins)
        missed = [run_missed(run, claim) for claim in claims]
        if run.finished or run.steps >= max_products:
            break
        if len(chosen) == count and run.steps >= min_products and float(bounds[chosen].max()) <= tol * scale:
            if not verify or max(missed) <= 1 - confidence:
                break
            doubtful = [c for c, p in zip(claims, missed, strict=True) if p > 1 - confidence]
            hopeless = any(run.unseen[-1].beyond(x, end, position) == math.inf for c in doubtful for end, position, x in c)
            if hopeless and (float(bounds[chosen].max()) <= LOCK * tol * scale or run.residual == 0):
                gaps = torch.stack([end * (x - theta) for c in claims for end, _, x in c]).min(0).values
                room = (capacity - count) // 3
                extra = (bounds.square() <= 0.02 * tol * scale * gaps) & (gaps > 0)
                extra[chosen] = False
                extra = extra.nonzero().flatten()
                extra = extra[gaps[extra].argsort()][:room]
                if DEBUG: print('  lock at', run.steps, 'chosen', theta[chosen].tolist(), 'extra', theta[extra].tolist())
                run.lock(torch.cat([chosen, extra]))
                continue
        if run.full:
            if run.residual == 0:
                run.lock(chosen)
            else:
                if DEBUG: print('  restart at', run.steps)
                mine = theta_phase = torch.linalg.eigvalsh(run._T[run.locked:run.dimension, run.locked:run.dimension])
                m = len(mine)
                keep = int(KEEP * m) if run.locked else min(count + int(KEEP * (m - count)), m - 2)
                run.restart_thick(wanted.nearest(mine, max(1, keep)))
    vectors = run.basis.T @ S[:, chosen].to(run.basis)
    rounding = run.rounding + EVALUATION * torch.finfo(operator.dtype).eps * scale
    bounds = bounds[chosen] + rounding
    exact = run.dimension == n
    failure = (1 - confidence) / 2
    low, high = float(theta[0]), float(theta[-1])
    if not exact:
        low = max(p.bound(low, -1, failure / _looks(f)) for f, p in enumerate(run.unseen) if p.steps)
        high = min(p.bound(high, 1, failure / _looks(f)) for f, p in enumerate(run.unseen) if p.steps)
    return Eigenvalues(
        values=theta[chosen],
        error_bounds=bounds,
        missed=torch.tensor(missed, dtype=torch.float64),
        vectors=vectors,
        converged=bounds <= tol * scale,
        products=run.steps,
        lower=low - rounding,
        upper=high + rounding,
        rounding=rounding,
        confidence=1.0 if exact else confidence,
        run=run,
    )

DEBUG = False
KEEP = 0.5
LOCK = 0.1

def _looks(phase: int) -> float:
    return (phase + 1) * (phase + 2)


def run_missed(run, claim):
    if run.dimension == run.operator.size:
        return 0.0
    worst = 0.0
    for end, position, x in claim:
        worst = max(worst, min(_looks(f) * p.beyond(x, end, position) for f, p in enumerate(run.unseen) if p.steps))
    return min(1.0, len(claim) * worst)


@dataclass(frozen=True)
class _Wanted:
    which: str
    k: int
    n: int

    @property
    def count(self):
        return min(2 * self.k, self.n) if self.which == "both" else self.k

    def choose(self, theta):
        m, k = len(theta), self.k
        rising, falling = torch.arange(m), torch.arange(m).flip(0)
        if self.which == "largest":
            return falling[:k]
        if self.which == "smallest":
            return rising[:k]
        if self.which == "magnitude":
            return theta.abs().argsort(descending=True)[:k]
        top = falling[: min(k, m)]
        return torch.cat([top, rising[: min(k, m - len(top))]])

    def nearest(self, theta, count):
        if self.which == "both":
            return torch.cat([torch.arange(count // 2), torch.arange(len(theta) - (count - count // 2), len(theta))])
        return _Wanted(self.which, count, self.n).choose(theta)

    def claims(self, values, margins):
        out = []
        v, m = values.tolist(), margins.tolist()
        for i in range(len(v)):
            if self.which == "magnitude":
                rho = abs(v[i]) + m[i]
                pos = sum(x > 0 for x in v[:i])
                out.append([(1, pos, rho), (-1, i - pos, -rho)])
            elif self.which == "largest" or (self.which == "both" and i < self.k):
                out.append([(1, i, v[i] + m[i])])
            else:
                out.append([(-1, i - self.k if self.which == "both" else i, v[i] - m[i])])
        return out


def _mixed(start, w, directions):
    V = start.reshape(directions.size, -1)
    y = (V / V.norm(dim=0)) @ (0.5 + torch.rand(V.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(V)
    y = y / norm(y)
    v = y + SIGMA * w
    length = norm(v)
    return v / length, SIGMA / length

SIGMA = 0.1
