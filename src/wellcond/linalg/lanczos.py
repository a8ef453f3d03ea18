"""The Lanczos process with full reorthogonalization, in bounded memory if wanted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wellcond.linalg.missed import MissedBound
from wellcond.linalg.operator import SymmetricOperator
from wellcond.linalg.targets import Targets
from wellcond.linalg.vectors import RandomDirections, finite, inner, norm, rotate, without


class Lanczos:
    """An orthonormal basis Q (rows) of a Krylov space of A, and T = QAQᵀ, which is tridiagonal.

    Two things make room and go on. `thick_restart` keeps some Ritz vectors and the direction that comes next: T begins
    with an arrowhead, and the process is the same as before in a smaller space (Wu and Simon 2000). `lock` keeps some
    Ritz vectors and goes on from a random direction in their complement, as happens by itself where the Krylov space
    is exhausted: this is how repeated eigenvalues are found, of which one Krylov space has one vector each.

    Rounding is part of the result. In exact arithmetic A·q_j has no component along q_1 … q_{j−2}; what is found
    there is the rounding error of the product, measured; `rounding` is made of it.

    Args:
        operator: A.
        start: (n,), not zero.
        restart: where the Krylov space is exhausted before n steps, go on from this stream's next direction,
            orthogonal to the space (repeated eigenvalues are found this way); without it, stop there.
        capacity: the most rows that Q may have; one vector more is kept for the direction that comes next.
        share: of a uniformly random direction in the start, see `MissedBound`.

    Attributes:
        steps: products spent.
        dimension: m, the rows of Q; equal to `steps` unless room was made.
        exhausted: whether the Krylov space of the start is invariant (to rounding).
        missed: what each random start says about eigenvectors not found, the latest last.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        start: Tensor,
        restart: RandomDirections | None = None,
        *,
        capacity: int | None = None,
        share: float = 1.0,
    ):
        length = norm(start)
        if not 0 < length < float("inf"):
            raise ValueError(f"the start vector has norm {length}; it must be finite and not zero")
        self.operator, self.restart = operator, restart
        self.capacity = min(capacity or operator.size, operator.size)
        self.steps = self.dimension = self.locked = 0
        self.exhausted, self.residual, self._noise, self._scale = False, 0.0, 0.0, (0.0, 0.0)
        self._basis = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._T = torch.empty(0, 0, dtype=torch.float64)
        none = torch.empty(0, dtype=torch.float64)
        self.missed = [MissedBound(operator.size, share, none, none)]
        self._coupled, self._leftover = 0, torch.empty(0, 0, dtype=torch.float64)
        self._append(start / length)

    @property
    def finished(self) -> bool:
        """Whether no further step is possible."""
        return self.dimension == self.operator.size or (self.exhausted and self.restart is None)

    @property
    def full(self) -> bool:
        """Whether the next step needs room."""
        return self.dimension == self.capacity and not self.finished

    @property
    def basis(self) -> Tensor:
        """Q, (m, n)."""
        return self._basis[: self.dimension]

    @property
    def rounding(self) -> float:
        """How far rounding may move an eigenvalue of T, in its unit: the largest entry found where T should be zero,
        times √steps for the norm of a matrix of such entries, and never less than the precision of the numbers."""
        return max(self._noise, torch.finfo(self.operator.dtype).eps * self.scale) * math.sqrt(self.steps)

    @property
    def scale(self) -> float:
        """‖A‖, as far as seen, up to a factor of 2."""
        return sum(self._scale)

    def tridiagonal(self) -> Tensor:
        """T, (m, m), float64 on the CPU: it is small, and its eigenvalues are read by the host."""
        return self._T[: self.dimension, : self.dimension].clone()

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues of T, rising, (m,); its eigenvectors, (m, m); and bounds of the norms of the Ritz vectors'
        residuals, rounding aside, (m,)."""
        theta, S, couplings = self._ritz()
        return theta, S, couplings.abs().sum(0)

    def _ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues and eigenvectors of T, and the Ritz vectors' couplings, (p, m), to the p unit vectors that lead
        out of the space: the direction that comes next, and for each time that rows were locked the one that would
        have come."""
        theta, S = torch.linalg.eigh(self._T[: self.dimension, : self.dimension])
        return theta, S, torch.cat([self._leftover @ S[: self.locked], self.residual * S[-1:]])

    def product_of_start(self) -> Tensor:
        """A q₁, (n,), put together again from what the first step kept of it: α₁q₁ + β₁q₂."""
        beta = self.residual if self.dimension == 1 else float(self._T[1, 0])
        product = float(self._T[0, 0]) * self._basis[0]
        return product if beta == 0.0 else product + beta * self._basis[1]

    def extend(self, steps: int) -> Lanczos:
        """Take up to `steps` more steps, as far as there is room."""
        for _ in range(steps):
            if self.finished or self.full:
                break
            self._step()
        return self

    def thick_restart(self, targets: Targets, count: int) -> None:
        """Make room: of the latest process keep `count` Ritz vectors, those nearest to being targets, and the
        direction that comes next."""
        first, m = self.locked, self.dimension
        theta, S = torch.linalg.eigh(self._T[first:m, first:m])
        keep = targets.nearest(theta, count)
        theta, S = theta[keep], S[:, keep]
        self._replace(first, theta, S)
        self._basis[self.dimension].copy_(self._basis[m])
        couplings = self.residual * S[-1]
        self._T[self.dimension, first : self.dimension] = couplings
        self.missed[-1].restart(theta, couplings)

    def lock(self, keep: Tensor) -> None:
        """Keep some Ritz vectors and go on from the next random direction, orthogonal to them.

        Args:
            keep: indices into what `ritz` lists; fewer than there is room for.
        """
        theta, S, couplings = self._ritz()
        self._replace(0, theta[keep], S[:, keep])
        self._start_anew(theta[keep], couplings[:, keep].abs().sum(0), couplings[:, keep])

    def _replace(self, first: int, theta: Tensor, S: Tensor) -> None:
        """Replace the rows from `first` on by SᵀQ."""
        m, kept = self.dimension, first + len(theta)
        rotate(self._basis[first:m], S)
        coupled = self._T[:first, first:m] @ S
        self._T[first:] = 0.0
        self._T[:first, first:] = 0.0
        self._T[:first, first:kept] = coupled
        self._T[first:kept, :first] = coupled.T
        self._T[first:kept, first:kept] = torch.diag(theta)
        self.dimension, self._coupled = kept, first

    def _start_anew(self, theta: Tensor, residuals: Tensor, leftover: Tensor) -> None:
        assert self.restart is not None
        w = without(self.basis, self.restart.draw())
        self.missed.append(MissedBound(self.operator.size - self.dimension, 1.0, theta, residuals))
        self.locked = self._coupled = self.dimension
        self._leftover, self.residual = leftover, 0.0
        self._append(w / norm(w))

    def _step(self) -> None:
        m, first = self.dimension, self._coupled
        Q, eps = self._basis[: m + 1], torch.finfo(self.operator.dtype).eps
        w = self.operator.matvec(Q[m])
        alpha = finite(float(inner(Q[m], w)))
        w = w - alpha * Q[m]  # not in place: the operator may hold on to what it returned
        expected = self._T[m, first:m]
        w.addmv_(Q[first:m].T, expected.to(w), alpha=-1)
        beta, found = math.inf, torch.zeros(m + 1, dtype=torch.float64)
        # What is left should be orthogonal to Q, but for locked rows and rounding; twice where that takes much away,
        # since each pass leaves ε times what it removes.
        while True:
            components = inner(Q, w)
            w.addmv_(Q.T, components, alpha=-1)
            removed, first_pass = components.cpu().double(), math.isinf(beta)
            found += removed
            beta = finite(norm(w))
            if not first_pass or float(removed.norm()) <= beta:
                break
        alpha += float(found[m])
        self._T[m, : self.locked] = self._T[: self.locked, m] = found[: self.locked]
        self._T[m, m], self._T[first:m, m] = alpha, expected
        self._noise = max(self._noise, float(found[self.locked : m].abs().max()) if m > self.locked else 0.0)
        self._scale = max(self._scale[0], abs(alpha)), max(self._scale[1], beta)
        self.steps, self.dimension, self._coupled = self.steps + 1, m + 1, m
        # Under this size w is rounding error, and coupling to it would be noise: dropping it moves no eigenvalue
        # by more than the rounding that is reported anyway.
        negligible = max(10 * eps * self.scale, self._noise)
        self.missed[-1].step(alpha, max(beta, negligible))
        if beta > negligible and m + 1 < self.operator.size:
            self.residual = beta
            self._append(w.div_(beta))
            self._T[m + 1, m] = beta
            return
        self._noise = max(self._noise, beta)
        self.residual, self.exhausted = 0.0, True
        if not self.finished and not self.full:
            theta, _, bounds = self.ritz()
            padding = torch.zeros(len(self._leftover), m + 1 - self.locked, dtype=torch.float64)
            self._start_anew(theta, bounds + negligible, torch.cat([self._leftover, padding], dim=1))

    def _append(self, q: Tensor) -> None:
        """Set the direction that comes next."""
        m = self.dimension
        if m == len(self._basis):
            rows = 16 if m == 0 else 2 * m if self.capacity == self.operator.size else self.capacity + 1
            rows = min(rows, self.capacity + 1)
            basis, T = self._basis, self._T
            self._basis, self._T = basis.new_empty(rows, self.operator.size), T.new_zeros(rows, rows)
            self._basis[:m] = basis
            self._T[:m, :m] = T
        self._basis[m] = q
