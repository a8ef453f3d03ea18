"""The Lanczos process with full reorthogonalization."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wellcond.linalg.operator import NOT_FINITE, SymmetricOperator
from wellcond.linalg.vectors import RandomDirections, inner, norm


class Lanczos:
    """An orthonormal basis Q (rows) of a Krylov space of A, and T = QAQᵀ, which is tridiagonal.

    Rounding is part of the result. In exact arithmetic A·q_j has no component along q_1 … q_{j−2}; what is found
    there is the rounding error of the product, measured; `rounding` is made of it.

    Args:
        operator: A.
        start: (n,), not zero.
        restart: where the Krylov space is exhausted before n steps, go on from this stream's next direction,
            orthogonal to the space (repeated eigenvalues are found this way); without it, stop there.

    Attributes:
        steps: m, the products spent.
        exhausted: whether the Krylov space of the start is invariant (to rounding).
    """

    def __init__(self, operator: SymmetricOperator, start: Tensor, restart: RandomDirections | None = None):
        length = norm(start)
        if not 0 < length < float("inf"):
            raise ValueError(f"the start vector has norm {length}; it must be finite and not zero")
        self.operator, self.restart = operator, restart
        self.steps, self.exhausted, self._noise = 0, False, 0.0
        self._alphas: list[float] = []
        self._betas: list[float] = []
        self._basis = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._append(start / length)

    @property
    def finished(self) -> bool:
        """Whether no further step is possible."""
        return self.steps == self.operator.size or (self.exhausted and self.restart is None)

    @property
    def basis(self) -> Tensor:
        """Q, (m, n)."""
        return self._basis[: self.steps]

    @property
    def residual(self) -> float:
        """The norm of (I − QᵀQ)A q_m: zero when the space is invariant."""
        return self._betas[-1]

    @property
    def rounding(self) -> float:
        """How far rounding may move an eigenvalue of T, in its unit: the largest entry found where T should be zero,
        times √m for the norm of a matrix of such entries, and never less than the precision of the numbers."""
        return max(self._noise, torch.finfo(self.operator.dtype).eps * self.scale) * math.sqrt(self.steps)

    @property
    def scale(self) -> float:
        """A lower bound of ‖A‖ seen so far."""
        return max(abs(a) for a in self._alphas) + max((abs(b) for b in self._betas), default=0.0)

    def tridiagonal(self) -> Tensor:
        """T, (m, m), float64 on the CPU: it is small, and its eigenvalues are read by the host."""
        T = torch.diag(torch.tensor(self._alphas, dtype=torch.float64))
        off = torch.tensor(self._betas[: self.steps - 1], dtype=torch.float64)
        return T + torch.diag(off, 1) + torch.diag(off, -1)

    def product_of_start(self) -> Tensor:
        """A q₁, (n,), put together again from what the first step kept of it: α₁q₁ + β₁q₂."""
        product = self._alphas[0] * self._basis[0]
        return product if self._betas[0] == 0.0 else product + self._betas[0] * self._basis[1]

    def extend(self, steps: int) -> Lanczos:
        """Take up to `steps` more steps."""
        for _ in range(steps):
            if self.finished:
                break
            self._step()
        return self

    def _step(self) -> None:
        Q = self._basis[: self.steps + 1]
        w = self.operator.matvec(Q[self.steps])
        first = inner(Q, w)
        w = w - first @ Q
        # Once more: one pass leaves components of size ε‖Aq‖, which grow when w is small beside Aq.
        second = inner(Q, w)
        w = w - second @ Q
        coefficients = (first + second).cpu().double()
        if not torch.isfinite(coefficients).all():
            raise FloatingPointError(NOT_FINITE)
        expected = torch.zeros_like(coefficients)
        if self.steps:
            expected[self.steps - 1] = self._betas[-1]
        expected[self.steps] = coefficients[self.steps]
        beta, alpha = norm(w), float(coefficients[self.steps])
        self._noise = max(self._noise, float((coefficients - expected).abs().max()))
        self.steps += 1
        self._alphas.append(alpha)
        self._betas.append(beta)
        # Under this size w is rounding error, and coupling to it would be noise: dropping it moves no eigenvalue
        # by more than the rounding that is reported anyway.
        negligible = max(10 * torch.finfo(self.operator.dtype).eps * self.scale, self._noise)
        if beta <= negligible or self.steps == self.operator.size:
            self._noise = max(self._noise, beta)
            self._betas[-1] = 0.0
            self.exhausted = True
            if self.finished:
                return
            assert self.restart is not None
            w = self.restart.draw()
            for _ in range(2):
                w = w - inner(self.basis, w) @ self.basis
            beta = norm(w)
        self._append(w / beta)

    def _append(self, q: Tensor) -> None:
        if self.steps == len(self._basis):
            rows = min(max(16, 2 * self.steps), self.operator.size)
            grown = self._basis.new_empty(rows, self.operator.size)
            grown[: self.steps] = self._basis
            self._basis = grown
        self._basis[self.steps] = q
