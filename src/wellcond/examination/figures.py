"""How the figures of an examination are named for a reader, once for the page, the terminal and the JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from wellcond.conditioning import Conditioning
from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.linalg import Estimate
from wellcond.normalization import LayerConditioning

CURVATURES = {
    "hessian": "Hessian H",
    "hessian_preconditioned": "PᵀHP",
    "gauss_newton": "Gauss-Newton G",
    "gauss_newton_preconditioned": "PᵀGP",
}


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
"""Of the figures of a curvature, by their names in the JSON schema."""

OF_THETA = ("kappa_50", "kappa_90", "negative_fraction")
"""Those that belong to a θ and can't be compared with others'."""

KAPPAS = {
    "kappa": "as it is",
    "kappa_centered": "centered",
    "kappa_scaled": "scaled",
    "kappa_standardized": "standardized",
    "kappa_row_normalized": "rows normalized",
}
"""Of the κ of what a layer sees, by their names in the JSON schema."""


@dataclass(frozen=True)
class Row:
    """One figure, plain and under the preconditioner."""

    symbol: str
    meaning: str
    plain: Estimate | None
    preconditioned: Estimate | None

    @property
    def cells(self) -> tuple[str, str]:
        """Both figures as text: eigenvalues with their error bound, the rest with their interval."""
        show = Estimate.with_error if self.symbol.startswith("λ") else str
        plain, preconditioned = ("–" if e is None else show(e) for e in (self.plain, self.preconditioned))
        return plain, preconditioned

    @property
    def how(self) -> str:
        """How the figure was obtained."""
        shown = self.preconditioned or self.plain
        return shown.how if shown else ""


def conditioning_figures(c: Conditioning) -> dict[str, Estimate]:
    """All figures of one curvature under the names of the JSON schema."""
    return {
        "largest": c.largest,
        "smallest": c.smallest,
        "kappa_mean": c.kappa_mean,
        "kappa_star": c.kappa_star,
        "kappa_50": c.kappa(0.5),
        "kappa_90": c.kappa(0.9),
        "kappa_effective": c.kappa_effective,
        "outside_range": c.outside_range,
        "negative_fraction": c.negative_fraction,
    }


_ROWS = [
    ("λ_max", "largest eigenvalue", "largest"),
    ("λ_min", "smallest eigenvalue: negative curvature", "smallest"),
    ("negative", "fraction of eigenvalues below −θ·λ_max", "negative_fraction"),
    ("κ̄", "λ_max over the mean of |λ|", "kappa_mean"),
    ("κ(0.5)", "λ_max over the median of the eigenvalues above θ·λ_max", "kappa_50"),
    ("κ(0.9)", "the same for 90 % of them", "kappa_90"),
    ("κ*", "λ_max over the smallest eigenvalue above rounding", "kappa_star"),
]
_GAUSS_NEWTON_ROWS = [
    ("κ̄", "λ_max over the mean eigenvalue", "kappa_mean"),
    (
        "κ_eff",
        "what gradient descent feels: its steps down to 1 % of the reducible loss, over ½·ln 100",
        "kappa_effective",
    ),
    ("flat share", "squared gradient on directions without curvature", "outside_range"),
]


def rows(m: Measurements) -> Iterator[Row]:
    """The table of conditioning figures, in reading order, without lines that have no figure at all."""
    plan = [("hessian", "H", _ROWS), ("gauss_newton", "G", _GAUSS_NEWTON_ROWS)]
    if m.settings.curvature == "gauss-newton":
        plan = [("gauss_newton", "G", [row for row in _ROWS if row[2] != "kappa_mean"] + _GAUSS_NEWTON_ROWS)]
    for curvature, matrix, lines in plan:
        plain, own = m.figures.get(curvature), m.figures.get(f"{curvature}_preconditioned")
        before = conditioning_figures(plain) if plain is not None else {}
        after = conditioning_figures(own) if own is not None else {}
        for symbol, meaning, key in lines:
            row = Row(f"{symbol} of {matrix}", meaning, before.get(key), after.get(key))
            known = [e for e in (row.plain, row.preconditioned) if e is not None and e.defined]
            # A gradient without a flat share is what one expects, and the rounding of its zero tells nobody anything.
            if known and (key != "outside_range" or any(e.value > 1e-4 for e in known)):
                yield row


def shown_spectra(m: Measurements) -> dict[str, Conditioning]:
    """By label, the curvature whose spectrum is shown, plain and under P; none without positive eigenvalues."""
    kind = "hessian" if m.settings.curvature == "hessian" else "gauss_newton"
    found = {CURVATURES[name]: m.figures[name] for name in (kind, f"{kind}_preconditioned") if name in m.figures}
    return {label: c for label, c in found.items() if c.largest.value > 0}


def eigenvalue_bound(m: Measurements) -> float | None:
    """The eigenvalue of PᵀHP at which the step is unstable: bound over rate (theory, section 2.3)."""
    return m.edge.bound / m.edge.rate if m.edge is not None and m.edge.rate > 0 else None


def counts(c: Conditioning) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(eigenvalue, at least so many above it, at most so many), down to what is known of a spectrum."""
    fractions = torch.logspace(-8 if c.spectrum is not None else -3, 0, 161, dtype=torch.float64)
    # The largest eigenvalue itself counts, whatever the rounding of the product fraction · λ_max.
    return fractions * c.largest.value, *c.counts_above(fractions * c.largest.value * (1 - 1e-12))


def candidates(m: Measurements) -> dict[str, str]:
    """What the curves of the forecast are, by their names."""
    optimizer = m.optimizer.name if m.optimizer else "the optimizer"
    return {
        "as it is": f"{optimizer} as it is",
        "its P alone": f"gradient descent under {optimizer}'s P",
        "no preconditioner": "gradient descent",
        "rows scaled": "gradient descent, rows of H scaled",
    }


def theta(m: Measurements) -> str:
    """The threshold θ of the figures that have one, as a sentence; empty where there are none."""
    c = next(iter(m.figures.values()), None)
    if c is None:
        return ""
    how = "all eigenvalues were computed" if c.spectrum is not None else "the spectrum was sampled"
    return f"θ = {c.theta:.0e}, since {how}; compare κ(ρ) and fractions at equal θ only."


def kappas(layer: LayerConditioning) -> tuple[Estimate, ...]:
    """One for each of `KAPPAS`."""
    return layer.kappa, layer.centered, layer.scaled, layer.standardized, layer.row_normalized


def layer_label(name: str) -> str:
    """A layer's name; the network itself has none."""
    return name or "(model)"


def most_severe(findings: Sequence[Finding]) -> Severity:
    """The severity of the most severe one."""
    return max((f.severity for f in findings), default=Severity.GOOD)


def interruption(part: str) -> str:
    """What a reader of a partial report has to know first; empty for a whole one.

    Args:
        part: what Ctrl-C ended, or empty.
    """
    return f"Partial report: interrupted at {part}. What came before is here, the rest is missing." if part else ""


def headline(m: Measurements) -> str:
    """One line about what was examined."""
    optimizer = f", {m.optimizer.name}" if m.optimizer else ""
    return (
        f"{m.model}, {_count(m.parameters, 'parameter')}{optimizer}; {_count(m.examples, 'example')} in "
        f"{_count(m.batches, 'batch', 'batches')}"
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
