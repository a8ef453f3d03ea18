"""Is the run at a point of strong negative curvature? (theory, section 2.2)."""

from __future__ import annotations

from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements

STRONG = 0.1
"""Near a minimum |λ_min|/λ_max of a network is a few per cent; beyond a tenth the point is closer to a saddle."""


def find(m: Measurements) -> Finding | None:
    """The most negative eigenvalue of the curvature that the optimizer sees, against the largest."""
    figures = m.of("hessian")
    if figures is None:
        return None
    low, high = figures.smallest, figures.largest
    evidence = {"smallest": low, "largest": high, "negative_fraction": figures.negative_fraction}
    if high.value <= 0 or -low.value > STRONG * high.value:
        return Finding(
            "negative_curvature",
            Severity.NOTICE,
            f"Strong negative curvature: the smallest eigenvalue is {low}, the largest {high}.",
            "The point is closer to a saddle or a maximum than to a minimum. Descent leaves along the negative "
            "directions; condition numbers of the positive ones say little until it has.",
            evidence,
        )
    return Finding(
        "negative_curvature",
        Severity.GOOD,
        f"Negative curvature is weak: the smallest eigenvalue is {low}, the largest {high}.",
        "Directions along which the loss curves downwards play no large part here.",
        evidence,
    )
