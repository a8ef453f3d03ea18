"""Are the inputs scaled? (theory, section 5.2)."""

from __future__ import annotations

from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.examination.subject import Subject

WORTH_IT = 3.0
"""The bound on κ of the layer's Hessian block goes with κ(Ĥ)²: a factor of 3 here is about 10 there."""

SEVERE = 10.0
"""A factor of 100 there."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The first layer that sees the data themselves, as they are against standardized."""
    layer = next((layer for layer in m.layers if layer.is_input), None)
    if layer is None or not layer.kappa.defined or not layer.standardized.defined:
        return None
    # An unresolved κ is "at least" its lower end: judge by that.
    gain = (layer.kappa.low if layer.kappa.unresolved else layer.kappa.value) / layer.standardized.value
    figures = f"κ of the first layer's extended inputs is {layer.kappa}; standardized it would be {layer.standardized}."
    evidence = {"kappa": layer.kappa, "standardized": layer.standardized}
    named = f"layer “{layer.name}”" if layer.name else "the model"
    if gain < WORTH_IT:
        return Finding(
            "inputs",
            Severity.GOOD,
            f"The inputs are well scaled: {figures}",
            f"Standardizing would improve κ of what {named} sees by less than a factor of {WORTH_IT:g}.",
            evidence,
        )
    return Finding(
        "inputs",
        Severity.SEVERE if gain >= SEVERE else Severity.NOTICE,
        f"The inputs are not scaled: {figures}",
        f"Extended inputs are the matrix that {named} sees, a row an example, with a column of ones for its bias. "
        f"Their mean makes {layer.mean_share:.0%} of the largest eigenvalue of the second moment. The conditioning of "
        "the layer's Hessian block goes about with the square of κ, a guide to how many more steps gradient descent "
        "needs there.",
        evidence,
        "mean, std = X.mean(0), X.std(0)\n"
        "X = (X - mean) / torch.where(std > 0, std, 1.0)   # and the same mean and std for every later input",
        subject.trials.normalized("standardize inputs"),
    )
