"""Eigenvalues that a Lanczos run has isolated, taken out; and what is proved about a spectrum without them and with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wellcond.linalg.estimate import CONFIDENCE
from wellcond.linalg.lanczos import Lanczos
from wellcond.linalg.operator import SymmetricOperator
from wellcond.linalg.quadrature import Probe, Quadrature, SpectralTails
from wellcond.linalg.vectors import RandomDirections, without

CONVERGED = 1e-6
"""Ritz pairs are taken for eigenpairs while their joint residual is under this, relative to ‖A‖."""


@dataclass(frozen=True)
class Isolated:
    """The Ritz pairs of a Lanczos run that are eigenpairs, and those that are not.

    Attributes:
        run: from a random start.
        theta, S: Ritz values, rising, and the eigenvectors of T.
        coupling: (m,), what ties each Ritz vector to the space outside the run.
        locked: (m,), whether the pair counts as an eigenpair.
    """

    run: Lanczos
    theta: Tensor
    S: Tensor
    coupling: Tensor
    locked: Tensor

    @classmethod
    def of(cls, run: Lanczos) -> Isolated:
        """Lock the pairs of the smallest residuals, as many as together stay under the tolerance."""
        theta, S = torch.linalg.eigh(run.tridiagonal())
        coupling = (0.0 if run.steps == run.operator.size else run.residual) * S[-1]
        order = coupling.abs().argsort()
        joint = coupling[order].square().cumsum(0).sqrt()
        locked = torch.empty_like(order, dtype=torch.bool)
        locked[order] = joint <= max(CONVERGED * run.scale, run.rounding)
        return cls(run, theta, S, coupling, locked)

    @property
    def values(self) -> Tensor:
        """(k,), the isolated eigenvalues, rising."""
        return self.theta[self.locked]

    @property
    def remaining(self) -> int:
        """n − k, the dimension of what is left."""
        return self.run.operator.size - int(self.locked.sum())

    @cached_property
    def vectors(self) -> Tensor:
        """(k, n), orthonormal rows."""
        return self.S[:, self.locked].T.to(self.run.basis) @ self.run.basis

    def probe(self, operator: SymmetricOperator, probes: int, steps: int, *, seed: int = 0) -> list[Probe]:
        """Lanczos runs from uniform directions in what is left."""
        if not self.remaining or not probes:
            return []
        rest, steps = Deflated(operator, self.vectors), min(steps, self.remaining)
        directions = RandomDirections(operator.size, operator.dtype, operator.device, seed)
        starts = (rest.project(directions.draw()) for _ in range(probes))
        return [Probe.of(Lanczos(rest, start).extend(steps)) for start in starts]


class Deflated(SymmetricOperator):
    """PAP, P = I − UᵀU, for vectors orthogonal to the rows of U, (k, n), which are orthonormal."""

    def __init__(self, operator: SymmetricOperator, U: Tensor):
        super().__init__(operator.size, operator.dtype, operator.device)
        self.operator, self.U = operator, U

    def project(self, v: Tensor) -> Tensor:
        """Pv."""
        return without(self.U, v)

    def _multiply(self, v: Tensor) -> Tensor:
        return self.project(self.operator.matvec(v))


@dataclass(frozen=True)
class DeflatedTails:
    """Bounds of how many eigenvalues lie above a threshold: the isolated ones are counted, the rest is sampled.

    Attributes:
        isolated: (k,), eigenvalues.
        slack: how far an eigenvalue of A may be from its partner among them and the rest's (Weyl), and rounding.
        whole: of the first run, on all of the space.
        rest: of the probes of what the isolated ones leave.
    """

    isolated: Tensor
    slack: float
    whole: SpectralTails
    rest: SpectralTails

    @classmethod
    def of(
        cls, known: Isolated, probes: Sequence[Quadrature], rounding: float, confidence: float = CONFIDENCE
    ) -> DeflatedTails:
        """From the first run and quadratures of what remains; nothing of the size of a vector is kept.

        Args:
            known: of the first run.
            probes: of the rest.
            rounding: by which a Ritz value may be off.
            confidence: probability that the bounds hold, at each threshold.
        """
        n, part = known.run.operator.size, (1 + confidence) / 2
        whole = SpectralTails(n, [Quadrature.of(known.run)], known.theta, rounding, part)
        rest = SpectralTails(known.remaining, probes, known.theta[~known.locked], rounding, part)
        slack = float(known.coupling[known.locked].norm()) + rounding
        return cls(known.values, slack, whole, rest)

    def count_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the number of eigenvalues ≥ x, (g,) each, whole numbers: of those from the first run on the whole
        space and those from the probes of the rest the better ones."""
        low, high = self.whole.count_above(x)
        least, most = ((self.isolated >= (x + s * self.slack)[:, None]).double().sum(1) for s in (1, -1))
        low = torch.maximum(low, least + self.rest.count_above(x + self.slack)[0])
        high = torch.minimum(high, most + self.rest.count_above(x - self.slack)[1])
        low = (low - 1e-6).ceil()
        return low, torch.maximum(low, (high + 1e-6).floor())

    def fraction_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same as fractions of all eigenvalues."""
        low, high = self.count_above(x)
        return low / self.whole.size, high / self.whole.size

    def fraction_below(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the fraction of eigenvalues < x, (g,) each."""
        (low, high), n = self.count_above(x), self.whole.size
        return (n - high) / n, (n - low) / n

    def estimate_above(self, x: Tensor) -> Tensor:
        """The Gauss rules' own estimate of the fraction ≥ x, without error, (g,)."""
        return self.mean_of(lambda values: (values >= x[:, None]).double())

    def mean_of(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """The Gauss rules' own estimate of the mean of f over the eigenvalues, without error.

        Args:
            f: (m,) eigenvalues → (m,) or (g, m).
        """
        if not self.rest.quadratures:
            return self.whole.mean_of(f)
        return (f(self.isolated).sum(-1) + self.rest.size * self.rest.mean_of(f)) / self.whole.size

    @property
    def products(self) -> int:
        """Matrix-vector products behind the bounds."""
        return sum(q.steps for q in (*self.whole.quadratures, *self.rest.quadratures))
