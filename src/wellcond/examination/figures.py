"""How the figures of an examination are named, for a reader and in the JSON."""

from __future__ import annotations

from wellcond.examination.measurements import Measurements

CURVATURES = {
    "hessian": "Hessian H",
    "hessian_preconditioned": "PᵀHP",
    "gauss_newton": "Gauss-Newton G",
    "gauss_newton_preconditioned": "PᵀGP",
}

OF_THETA = ("κ(0.5)", "κ(0.9)", "negative fraction")
"""Those that belong to a θ and can't be compared with others'."""

KAPPAS = {
    "kappa": "as it is",
    "kappa_centered": "centered",
    "kappa_scaled": "scaled",
    "kappa_standardized": "standardized",
    "kappa_row_normalized": "rows normalized",
}
"""The κ of what a layer sees, by their names in the JSON schema."""


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
