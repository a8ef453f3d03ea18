"""Figures of an examination as a reader sees them, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from wellcond.condition_numbers import SYMBOLS, Conditioning, shown
from wellcond.examination import CURVATURES, Measurements

_MEANINGS = {
    "largest": "largest eigenvalue",
    "smallest": "smallest eigenvalue: negative curvature",
    "negative_fraction": "fraction of eigenvalues below −θ·λ_max",
    "kappa_mean": "λ_max over the mean of |λ|",
    "kappa_50": "λ_max over the median of the eigenvalues above θ·λ_max",
    "kappa_90": "the same for 90 % of them",
    "kappa_star": "λ_max over the smallest eigenvalue above rounding",
}
_OF_GAUSS_NEWTON = {
    "kappa_mean": "λ_max over the mean eigenvalue",
    "kappa_effective": "what gradient descent feels: its steps down to 1 % of the reducible loss, over ½·ln 100",
    "outside_range": "squared gradient on directions without curvature",
}


class Row(NamedTuple):
    """One figure.

    Attributes:
        symbol, meaning: its name, and what it is.
        cells: plain and under the preconditioner, eigenvalues with their error bound, the rest with their interval.
        how: the method behind it.
    """

    symbol: str
    meaning: str
    cells: list[str]
    how: str


def rows(m: Measurements) -> Iterator[Row]:
    """The table of conditioning figures, in reading order, without lines that have no figure at all."""
    plan = [("hessian", "H", _MEANINGS), ("gauss_newton", "G", _OF_GAUSS_NEWTON)]
    if m.settings.curvature == "gauss-newton":
        plan = [("gauss_newton", "G", _MEANINGS | _OF_GAUSS_NEWTON)]
    for curvature, matrix, meanings in plan:
        both = [m.figures.get(name) for name in (curvature, f"{curvature}_preconditioned")]
        before, after = (c.by_name() if c is not None else {} for c in both)
        for key, meaning in meanings.items():
            plain, own = before.get(key), after.get(key)
            given = [e for e in (plain, own) if e is not None]
            known = [e for e in given if e.defined]
            # A gradient without a flat share is what one expects, and the rounding of its zero tells nobody anything.
            if known and (key != "outside_range" or any(e.value > 1e-4 for e in known)):
                symbol = "negative" if key == "negative_fraction" else SYMBOLS[key]
                cells = ["–" if e is None else shown(key, e) for e in (plain, own)]
                yield Row(f"{symbol} of {matrix}", meaning, cells, given[-1].how)


def shown_spectra(m: Measurements) -> dict[str, Conditioning]:
    """By label, the curvature whose spectrum is shown, plain and under P; none without positive eigenvalues."""
    kind = "hessian" if m.settings.curvature == "hessian" else "gauss_newton"
    found = {CURVATURES[name]: m.figures[name] for name in (kind, f"{kind}_preconditioned") if name in m.figures}
    return {label: c for label, c in found.items() if c.largest.value > 0}


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
