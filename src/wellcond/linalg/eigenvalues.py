"""Extreme eigenvalues, with what the iteration proves about them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wellcond.display import Table, number
from wellcond.linalg.estimate import CONFIDENCE, Estimate
from wellcond.linalg.lanczos import Lanczos
from wellcond.linalg.missed import MissedBound
from wellcond.linalg.operator import EVALUATION, SymmetricOperator, check_operator
from wellcond.linalg.targets import Claim, Targets
from wellcond.linalg.vectors import RandomDirections, inner, norm

SHARE = 0.3
"""Of the random direction in a start that is a user's guess. From 0.01 to 1 the products differed by two or three."""

KEPT = 0.4
"""Of the Ritz vectors a thick restart keeps this part of those beyond the wanted ones. On six kinds of spectra the
products differed by 4 % from 0.2 to 0.8, and were 3 to 7 % above those of an unbounded basis."""


SMALL = 300
"""Up to this size the basis may by default grow to the whole space."""


@dataclass(frozen=True)
class Eigenvalues:
    """Some eigenvalues of a symmetric operator and two kinds of statement about them (theory, section 2.4).

    *Proved*: within `error_bounds[i]` of `values[i]` lies an eigenvalue. *With a probability* over the random
    directions: it is the one asked for (`missed`), and no eigenvalue is outside `lower` to `upper`.

    `missed[i]` is a probability in the sense of a p-value: whatever the matrix, of all seeds a share of at most p
    misses an eigenvalue and states a `missed` of at most p, for every p, no matter when a run stops. The statements
    about all values at one end hold together with that probability. A value is missed where an eigenvalue that
    belongs before it lies further out than it, by more than the larger of tol·|λ|max and its error bound, and
    `rounding`. (Nearer in it cannot be: Ritz values don't exceed eigenvalues, counted from either end.)

    Attributes:
        values: (k,), in the order that `which` names: "largest" falling, "smallest" rising, "magnitude" falling in
            absolute value, "both" the k largest falling and then the k smallest rising.
        error_bounds: (k,), in the unit of the values: the residual norm ‖Au − θu‖ by the Lanczos relation, and the
            measured rounding of the products.
        missed: (k,), at most the probability that the i-th value is not the i-th eigenvalue.
        vectors: (n, k), orthonormal columns.
        converged: (k,), whether the error bound is within the tolerance asked for.
        products: matrix-vector products spent.
        lower, upper: bounds of the whole spectrum.
        rounding: how far rounding may move a value: what the run measured, and what the precision of the numbers does
            to the matrix itself, which no run can see.
        confidence: probability that `lower` and `upper` hold together; 1 if the whole space was searched.
        run: the Lanczos run itself, for what else its space says; from one random direction and nothing else while
            `run.steps == run.dimension` and it is not exhausted.
    """

    values: Tensor
    error_bounds: Tensor
    missed: Tensor
    vectors: Tensor
    converged: Tensor
    products: int
    lower: float
    upper: float
    rounding: float
    confidence: float
    run: Lanczos = field(repr=False)

    def _repr_html_(self) -> str:
        columns = zip(self.values.tolist(), self.error_bounds.tolist(), self.missed.tolist(), strict=True)
        rows = [(f"{value:.6g}", f"{error:.1e}", f"{missed:.1e}") for value, error, missed in columns]
        whole = f"whole spectrum: {number(self.lower)} to {number(self.upper)}, with probability {self.confidence:.3g}"
        headings = ["eigenvalue", "error bound", "missed, at most"]
        return Table(headings, rows, f"{self.products:,} products", [whole]).html()

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
    """Extreme eigenvalues by thick-restart Lanczos from a random start, and a search for what it missed.

    A Krylov space has one vector of a repeated eigenvalue, and its start may be poor in a vector that matters. So for
    k > 1 the converged vectors are set aside, and a new random direction in their complement goes on until it would
    have shown another eigenvalue, or has: repeated eigenvalues are found by this, one more of each at a time. For
    k = 1, at one end or both, the first run goes on until it has said enough itself.

    Memory: `max_basis` and 4 more vectors of length n, those listed, and 16 for a moment when the basis grows.

    Args:
        operator: symmetric, n × n.
        k: how many at each end asked for, 1 ≤ k ≤ n.
        which: "largest" or "smallest" (algebraic), "both" (k at each end), or "magnitude".
        tol: every residual bound is at most `tol` times the largest |eigenvalue| seen when the run stops by itself.
        verify: go on until every `missed` is at most 1 − `confidence`; otherwise stop at the tolerance, at a half to
            two thirds of the products, and let `missed` say what they amount to. A repeated eigenvalue then appears
            once, as long as rounding does not bring in its other vectors.
        confidence: for `missed`, and the probability that `upper` and `lower` hold together.
        start: (n,) or (n, s), guesses of eigenvectors, as the last step's of a training run, or a gradient, which leans
            towards its Hessian's largest. They are mixed with a random direction drawn for them, so that every
            statement holds for good and bad guesses. A good one saves products until the tolerance is met
            (`verify=False`); what `verify` asks for rests on the random part, and costs the same or a little more.
        min_products: take at least this many products before anything but plain Lanczos steps; they tighten `lower`
            and `upper`.
        max_products: stop after this many in any case; `converged` and `missed` say how far it came. By default
            300, or 20 for each eigenvalue targets.
        max_basis: the most vectors in the basis; at least 2·(number wanted) + 3. By default 40 and two for each
            wanted, or `min_products`, or as many as there are in a small space.
        seed: of the random directions.

    Raises:
        ValueError: if an argument makes no sense.
        FloatingPointError: if a product is not finite.

    Source: Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J. Matrix Anal.
    Appl. 22 (2000); theory, section 2.4; for `missed`, `MissedBound`.

    >>> import torch
    >>> from wellcond.linalg import MatrixOperator
    >>> e = eigenvalues(MatrixOperator(torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))), k=2)
    >>> [round(v, 2) for v in e.values.tolist()]
    [100.0, 99.0]
    """
    check_operator(operator)
    targets = Targets(which, k, operator.size)
    n, count = operator.size, targets.count
    if not tol > 0 or not 0 < confidence < 1:
        raise ValueError(f"got tol={tol}, confidence={confidence}; both are above 0, a confidence below 1")
    if max_products is None:
        max_products = max(300, 20 * count, min_products)
    if max_products < count:
        raise ValueError(f"got max_products={max_products}, too few for {count} eigenvalues")
    if max_basis is None:
        max_basis = max(40 + 2 * count, min_products, n if n <= SMALL else 0)
    if max_basis < min(2 * count + 3, n):
        raise ValueError(f"got max_basis={max_basis}; {count} eigenvalues take a basis of {min(2 * count + 3, n)}")

    directions, share = RandomDirections(n, operator.dtype, operator.device, seed), 1.0
    first = directions.draw()
    if start is not None:
        first, share, directions = _mixed(start, first, seed)
    run = Lanczos(operator, first, directions, capacity=max_basis, share=share)
    with operator.keeping(max_products):
        while True:
            run.extend(min(max(min_products - run.steps, 1 + run.missed[-1].steps // 20), max_products - run.steps))
            theta, S, bounds = run.ritz()
            chosen, scale = targets.choose(theta), float(theta.abs().max())
            claims = targets.claims(theta[chosen], bounds[chosen].clamp_min(tol * scale + 1e-300))
            if run.finished or run.steps >= max_products:
                break
            within = len(chosen) == count and float(bounds[chosen].max()) <= tol * scale
            if within and run.steps >= min_products:
                doubtful = next((c for c in targets.hardest_first(claims) if _missed(run, c) > 1 - confidence), None)
                if not verify or doubtful is None:
                    break
                if any(run.missed[-1].failure(c) == math.inf for c in doubtful):
                    # What is locked stays as accurate as it is: each time there must be room for more to come.
                    slack = tol * scale * (1 - 1 / (len(run.missed) + 1))
                    locked = _lockable(claims, theta, bounds, chosen, slack, (max_basis - count) // 3)
                    if locked is not None:
                        run.lock(locked)
                        continue
            if run.full and run.residual == 0:
                run.lock(chosen)
            elif run.full:
                new = int((S[: run.locked, chosen].square().sum(0) < 0.5).sum())
                rows = run.dimension - run.locked
                run.thick_restart(targets, min(new + int(KEPT * (rows - new)), rows - 1))

    rounding = run.rounding + EVALUATION * torch.finfo(operator.dtype).eps * scale
    lower, upper = float(theta[0]), float(theta[-1])
    exact = run.dimension == n
    if not exact:
        shares = [((1 - confidence) / 2 / _looks(i), u) for i, u in enumerate(run.missed) if u.steps]
        lower = max(u.bound(lower, -1, failure) for failure, u in shares)
        upper = min(u.bound(upper, 1, failure) for failure, u in shares)
    return Eigenvalues(
        values=theta[chosen],
        error_bounds=bounds[chosen] + rounding,
        missed=torch.tensor([_missed(run, c) for c in claims], dtype=torch.float64),
        vectors=run.basis.T @ S[:, chosen].to(run.basis),
        converged=bounds[chosen] + rounding <= tol * scale,
        products=run.steps,
        lower=lower - rounding,
        upper=upper + rounding,
        rounding=rounding,
        confidence=1.0 if exact else confidence,
        run=run,
    )


def _looks(start: int) -> int:
    """One over the part of the failures that the run's i-th random start gets; all parts add up to 1."""
    return (start + 1) * (start + 2)


def _missed(run: Lanczos, claims: list[Claim]) -> float:
    """The probability that one of the claims is wrong."""
    if run.dimension == run.operator.size:
        return 0.0
    worst = max(min(_looks(i) * u.failure(c) for i, u in enumerate(run.missed) if u.steps) for c in claims)
    return min(1.0, len(claims) * worst)


def _lockable(
    claims: list[list[Claim]], theta: Tensor, bounds: Tensor, chosen: Tensor, slack: float, room: int
) -> Tensor | None:
    """Ritz vectors to set aside, so that their complement decides about the claims: the chosen ones, if they are
    accurate enough for that, and up to `room` others that are, since without them there is less to hide behind."""
    found = MissedBound(1, 1.0, theta[chosen], bounds[chosen])
    nearest = torch.full_like(theta, math.inf)
    for claim in (c for group in claims for c in group):
        y = found.inside(claim)
        if y is None or abs(claim.x - y) > slack:
            return None
        nearest = torch.minimum(nearest, claim.end * (claim.x - theta))
    others = (nearest > 0) & (bounds.square() <= slack / 50 * nearest)
    others[chosen] = False
    indices = others.nonzero().flatten()
    return torch.cat([chosen, indices[nearest[indices].argsort()][:room]])


def _mixed(start: Tensor, direction: Tensor, seed: int) -> tuple[Tensor, float, RandomDirections]:
    """A guess with a random direction in it, the share of that, and a stream for later ones.

    A guess may come from a run with this very seed, and then depends on that stream's directions: another stream is
    made from both.
    """
    n = len(direction)
    if not isinstance(start, Tensor):
        raise TypeError(f"got start= as a {type(start).__name__}; give a tensor of shape ({n},) or ({n}, s)")
    if start.ndim not in (1, 2) or start.shape[0] != n or not start.numel():
        raise ValueError(f"got start= of shape {tuple(start.shape)}; expected ({n},), or ({n}, s) for s guesses")
    if start.dtype != direction.dtype or start.device != direction.device:
        raise ValueError(
            f"got start= in {start.dtype} on {start.device}; expected {direction.dtype} on {direction.device}"
        )
    lengths = [norm(column) for column in start.reshape(n, -1).T]
    if not all(0 < length < math.inf for length in lengths):
        raise ValueError(f"got start= with columns of norm {lengths}; each must be finite and not zero")
    # Unequal weights, so that guesses that are each other's opposite don't cancel.
    generator = torch.Generator().manual_seed(seed)
    weights = (0.5 + torch.rand(len(lengths), generator=generator)).to(start) / start.new_tensor(lengths)
    guess = start.reshape(n, -1) @ weights
    guess = guess / norm(guess)
    directions = RandomDirections(n, start.dtype, start.device, hash((seed, float(inner(guess, direction)))) % 2**63)
    mixed = guess + SHARE * directions.draw()
    length = norm(mixed)
    return mixed / length, SHARE / length, directions
