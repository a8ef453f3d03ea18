"""The figures of a curvature, as far as the ends of its spectrum tell them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wellcond.display import Table
from wellcond.linalg import Eigenvalues, Estimate

SYMMETRIC = {torch.float64: 1e-3, torch.float32: 2e-2}
"""Products that are less symmetric than this, relative to the largest eigenvalue, are wrong and not just rounded: the
double backward of weight_norm, which is wrong, comes to 0.3, float32 on inputs far off center to 2e-3."""

SYMBOLS = {
    "largest": "λ_max",
    "smallest": "λ_min",
    "kappa_mean": "κ̄",
    "kappa_star": "κ*",
    "kappa_50": "κ(0.5)",
    "kappa_90": "κ(0.9)",
    "kappa_effective": "κ_eff",
    "outside_range": "flat share",
    "negative_fraction": "negative fraction",
}
"""Of the figures of a curvature, by their names in an examination's JSON."""

NOT_MEASURED = "only the ends of the spectrum were measured"
UNKNOWN = Estimate.undefined(NOT_MEASURED)


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """The figures of theory section 2.2 for one curvature operator.

    Attributes:
        size: n.
        largest, smallest: extreme eigenvalues, algebraic.
        top, bottom: a few of the largest, falling, and of the smallest, rising. Above the dense limit only those whose
            residual bound is within 0.1 % of the largest in size; their intervals contain *an* eigenvalue each.
        kappa_mean: κ̄, the largest eigenvalue over the mean one (the mean of |λ| where the operator is indefinite).
        kappa_star: κ*, over the smallest eigenvalue that is not zero to rounding; only from a whole spectrum.
        kappa_effective: κ_eff, what gradient descent feels, from the operator's own gradient.
        outside_range: fraction of the squared gradient on directions without curvature.
        negative_fraction: fraction of eigenvalues below −θ·largest.
        theta: θ, under which an eigenvalue counts as zero relative to the largest.
        spectrum: (n,), all eigenvalues, rising, where they were computed; else None.
        products: matrix-vector products spent.
        rounding: of the products, in the unit of the eigenvalues: what a row norm must exceed not to be zero.
        squared_rows: what `squared_row_norms` answers; None where no rows were seen.
    """

    size: int
    largest: Estimate
    smallest: Estimate
    top: list[Estimate] = field(default_factory=list)
    bottom: list[Estimate] = field(default_factory=list)
    kappa_mean: Estimate = UNKNOWN
    kappa_star: Estimate = UNKNOWN
    kappa_effective: Estimate = UNKNOWN
    outside_range: Estimate = UNKNOWN
    negative_fraction: Estimate = UNKNOWN
    theta: float = 1e-2
    spectrum: Tensor | None = field(default=None, repr=False)
    products: int
    rounding: float = field(repr=False)
    squared_rows: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of_ends(cls, e: Eigenvalues, size: int) -> Conditioning:
        """What a run for the largest eigenvalue says: both ends, the smallest from above, and nothing between."""
        low = float(e.run.ritz()[0][0])  # the smallest eigenvalue is at most the smallest Ritz value
        smallest = Estimate(low, e.lower, low + e.rounding, f"Lanczos, {e.products} products", e.confidence)
        return cls(size=size, largest=e.largest(), smallest=smallest, products=e.products, rounding=e.rounding)

    def kappa(self, fraction: float) -> Estimate:
        """κ(ρ): the smallest κ for which a fraction ρ of the eigenvalues above θλ_max is at least λ_max/κ.

        Args:
            fraction: ρ, 0 < ρ ≤ 1.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"got fraction={fraction}; it is above 0 and at most 1")
        return self._kappa(fraction)

    def _kappa(self, fraction: float) -> Estimate:
        return UNKNOWN

    def counts_above(self, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the number of eigenvalues ≥ each threshold, (g,) each: the spectrum as a curve with its error."""
        low, high = self._fraction_above(thresholds)
        return low * self.size, high * self.size

    def _fraction_above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x <= self.smallest.low).double(), (x <= self.largest.high).double()

    def squared_row_norms(self) -> Tensor:
        """Samples of the squared norms of the matrix's rows, (s, n) and unbiased; one exact row where it was formed."""
        if self.squared_rows is None:
            raise ValueError(f"{NOT_MEASURED}; there are no row norms")
        return self.squared_rows

    def by_name(self) -> dict[str, Estimate]:
        """All figures, those of `SYMBOLS`."""
        kappas = {"kappa_50": self.kappa(0.5), "kappa_90": self.kappa(0.9)}
        return {name: kappas[name] if name in kappas else getattr(self, name) for name in SYMBOLS}

    def _repr_html_(self) -> str:
        size = f"{self.size:,} eigenvalues, {self.products:,} products, θ = {self.theta:.0e}"
        rows = [(SYMBOLS[name], shown(name, e), e.how) for name, e in self.by_name().items()]
        return Table(["", "figure", "how"], rows, size).html()


def shown(name: str, e: Estimate) -> str:
    """A figure as a reader sees it: eigenvalues with their error bound, the rest with their interval."""
    return e.with_error() if name in ("largest", "smallest") else str(e)


def check_symmetric(asymmetry: float, scale: float, dtype: torch.dtype) -> None:
    """Refuse a matrix whose products contradict each other by more than rounding can."""
    if asymmetry > SYMMETRIC[dtype] * scale:
        raise FloatingPointError(
            f"the second derivative is not symmetric ({asymmetry / scale:.0e} of its size): torch's double backward of "
            "some layer is wrong (weight_norm's is known to be), the network is not the same at every evaluation, or "
            "float32 is too coarse here (measure in float64)"
        )


def ratio(over: Estimate, under: Estimate, how: str) -> Estimate:
    """over/under for an `under` that should be positive; the probabilities of failing add up."""
    if not (over.value > 0 and under.value > 0):
        return Estimate.undefined("no positive curvature")
    low = max(0.0, over.low) / under.high
    high = over.high / under.low if under.low > 0 else math.inf
    return Estimate(over.value / under.value, low, high, how, max(0.0, over.confidence + under.confidence - 1))
