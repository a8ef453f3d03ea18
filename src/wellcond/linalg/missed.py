"""What the random start of a Krylov process says about eigenvectors that the process has not found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from wellcond.linalg.targets import Claim


@dataclass
class MissedBound:
    """How likely it is that a compressed matrix has an eigenvalue beyond x that a Krylov process has not shown.

    B is A between the complement of some orthonormal vectors, N × N, and v the start of a Krylov process on it, uniform
    on the sphere. By the recurrence of the process, an eigenvector u of B with eigenvalue x beyond all Ritz values has
    the component p_j(x)·uᵀv along the j-th basis vector, with p_j(x) known. All these squared add up to at most 1:

        (uᵀv)² ≤ 1/K(x),  K = Σ p_j(x)²,  and K rises outwards.

    u does not depend on v, so that this happens by chance with a probability of at most √(2N/(πK(x))). It is one and
    the same event for all x and all lengths of the process: whoever looks after every step, and stops when he likes,
    errs no more often. For a process that is never restarted 1/K is the Christoffel function, the most mass that the
    spectral measure of v can have at x; a thick restart makes the recurrence rational at one step.

    Attributes:
        dimension: N.
        share: the start is `share` times a uniform direction, plus any vector that does not depend on it. (A symmetric
            unimodal density has no more mass on an interval elsewhere than about zero.)
        values, residuals: (l,) each, Rayleigh quotients of the vectors that B is the complement of, made diagonal, and
            bounds of the norms of their residuals.

    Source: the recurrence is the one of Golub and Meurant, "Matrices, moments and quadrature" (1994); compare
    Kuczyński and Woźniakowski (SIAM J. Matrix Anal. Appl. 13, 1992), whose bound holds before any step is taken and
    is the same where the spectrum is as bad as can be.
    """

    dimension: int
    share: float
    values: Tensor
    residuals: Tensor
    _alphas: list[float] = field(default_factory=list)
    _betas: list[float] = field(default_factory=list)
    _restarts: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Products behind the statement."""
        return len(self._alphas)

    def step(self, alpha: float, beta: float) -> None:
        """One step of the process: diagonal entry, and the norm of what is left over."""
        self._alphas.append(alpha)
        self._betas.append(beta)

    def restart(self, theta: Tensor, couplings: Tensor) -> None:
        """The next basis vector is coupled to Ritz vectors with values `theta`, instead of to the last one."""
        self._restarts[self.steps] = theta, couplings.square()

    def amplification(self, x: float, end: int = 1) -> float:
        """K(x), or a lower bound of it; 0 where x is not beyond all Ritz values at that end (1: above, -1: below)."""
        largest, squares, before, here, coupling = 1.0, 1.0, 0.0, 1.0, 0.0
        for j, (alpha, beta) in enumerate(zip(self._alphas, self._betas, strict=True)):
            feedback = coupling * before
            if j in self._restarts:
                theta, squared = self._restarts[j]
                gaps = end * (x - theta)
                if float(gaps.min()) <= 0:
                    return 0.0
                feedback = here * float((squared / gaps).sum())
                squares = here * here * (1 + float((squared / gaps**2).sum()))
            if beta == 0.0:
                return math.inf if end * (x - alpha) > 0 else 0.0
            before, here, coupling = here, (end * (x - alpha) * here - feedback) / beta, beta
            if not here > 0:
                return 0.0
            squares += here * here
            largest = max(largest, squares)
            if largest > 1e250:
                break
        return largest

    def inside(self, claim: Claim) -> float | None:
        """Up to where B may have eigenvalues for the claim about A to hold; None if B doesn't decide that.

        Between the complement of `position` of the vectors A has an eigenvalue beyond x if A has one more than
        `position` of them (Courant and Fischer). That compression consists of B, the other vectors' values θ, and a
        coupling of at most their residuals r: with B at most y, it is at most x where y + Σ r²/(x − θ) ≤ x.
        """
        end, position, x = claim
        rest = (end * self.values).argsort(descending=True)[position:]
        gaps = end * (x - self.values[rest])
        if len(self.values) < position or bool((gaps <= 0).any()):
            return None
        return x - end * float((self.residuals[rest].square() / gaps).sum())

    def failure(self, claim: Claim) -> float:
        """A bound of the probability that the claim is wrong though this process has not shown it; infinite where the
        process will have nothing to say, however long it goes on."""
        y = self.inside(claim)
        amplification = 0.0 if y is None else self.amplification(y, claim.end)
        if amplification == 0.0:
            return math.inf
        return math.sqrt(2 * self.dimension / (math.pi * amplification)) / self.share

    def bound(self, inner: float, end: int, failure: float) -> float:
        """Beyond what A has no eigenvalue, but for the probability `failure`; not nearer than `inner`."""
        step = 1e-15 * (abs(inner) + max(self._betas)) + 1e-300
        while self.failure(Claim(end, 0, inner + end * step)) > failure and math.isfinite(step):
            step *= 2
        low, high = step / 2, step
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self.failure(Claim(end, 0, inner + end * middle)) > failure else (low, middle)
        return inner + end * high
