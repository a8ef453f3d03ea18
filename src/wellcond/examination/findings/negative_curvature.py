"""Is the run at a point of strong negative curvature? (theory, section 2.2)."""

from __future__ import annotations

from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.examination.subject import Subject

STRONG = 0.5
"""From half of λ_max on, a step as large as stability allows leaves along the negative direction about as fast as it
converges along the steepest one: the point is a saddle and not the wall of a valley."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The most negative eigenvalue of the curvature that the optimizer sees, against the largest."""
    figures = m.of("hessian")
    if figures is None:
        return None
    low, high = figures.smallest, figures.largest
    matrix = "PᵀHP" if m.preconditioned else "the Hessian"
    evidence = {"smallest": low, "largest": high, "negative_fraction": figures.negative_fraction}
    ends = f"the smallest eigenvalue of {matrix} is {low}, the largest {high}."
    if low.value == high.value == 0:
        title, severity = "There is no curvature: the Hessian is zero.", Severity.NOTICE
        text = "The loss is linear in every parameter here, as behind dead units or a loss without curvature."
    elif high.value <= 0 or -low.value > STRONG * high.value:
        title, severity = f"Strong negative curvature: {ends}", Severity.NOTICE
        text = (
            "The point is a saddle, or above one. Descent leaves along the negative directions, and condition numbers, "
            "which look at the positive ones, say little until it has."
        )
    elif low.low > 0:
        title, severity = f"There is no negative curvature: {ends}", Severity.GOOD
        text = "The loss curves upwards in every direction here."
    else:
        title, severity = f"Negative curvature is not dominant: {ends}", Severity.GOOD
        text = "There are directions along which the loss curves downwards, but weakly beside the steepest one."
    return Finding("negative_curvature", severity, title, text, evidence)
