"""Is what a hidden layer sees far worse conditioned than what the others see? (theory, sections 5.1 and 5.2)."""

from __future__ import annotations

import math
import statistics

from wellcond.display import number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.normalization import LayerConditioning

BAD = 1e5
"""Of κ(Ĥ): squared it is at 1e10, and single precision holds 1e7. Hidden layers of the test suite's 20 healthy runs
have at most 4e4."""

WORTH_IT = 10.0
"""Times that standardizing makes it smaller: else normalization is no remedy."""

GONE = 0.1
"""Of a singular value: what is left of one that centering takes away is rounding."""

DOMINATES = 10.0
"""Times the median of the other hidden layers, which a network without a weak place stays under."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The hidden layer with the largest κ(Ĥ), against what it would be standardized and against the others."""
    hidden = [layer for layer in m.layers if not layer.is_input and layer.kappa.defined and layer.standardized.defined]
    if not hidden:
        return None
    layer = max(hidden, key=_low)
    others = [_low(other) for other in hidden if other is not layer]
    gain = _low(layer) / layer.standardized.value
    if _low(layer) < BAD or gain < WORTH_IT or (others and _low(layer) < DOMINATES * statistics.median(others)):
        return None
    beside = f"; the other hidden layers have {number(statistics.median(others))} in the median" if others else ""
    effect = subject.trials.of_network("BNP")
    by_trial = Severity.SEVERE.after(effect) if effect else Severity.NOTICE
    text = (
        f"The mean makes {layer.mean_share:.1%} of the largest eigenvalue of what this layer sees. The conditioning of "
        "its Hessian block goes about with the square of κ: along most directions of its weights gradient descent "
        "hardly moves. A normalization in front of it, or of its gradient, takes the mean and the scales away."
    )
    if effect and not effect.saves():
        text += (
            " In a trial from new weights normalizing the gradients was no clear gain: look where the mean comes from."
        )
    title = (
        f"Layer “{layer.name}” is badly conditioned: κ of what it sees is {layer.kappa}, and standardized it would be "
        f"{layer.standardized}{beside}."
    )
    evidence = {"kappa": layer.kappa, "centered": layer.centered, "standardized": layer.standardized}
    remedy = (
        f"# in front of {layer.name!r}: nn.BatchNorm1d or nn.LayerNorm; or, without a layer:\n"
        "wc.precondition(optimizer, wc.BatchNormPreconditioner(model))"
    )
    severity = max(by_trial, Severity.NOTICE)
    return Finding("layer_conditioning", severity, title, text, evidence, remedy, effect)


def _low(layer: LayerConditioning) -> float:
    """κ, or its lower end where that is all that is known; without a direction in which a layer that has no bias sees
    the mean alone. Behind a layer norm, whose rows sum to nearly nothing, that is a bias which nobody asked for."""
    kappa, spectra, last = layer.kappa, layer.spectra, layer.rank - 1
    if kappa.unresolved or not spectra or last < 1:
        return kappa.certain
    values, centered = spectra["as it is"], spectra["centered"]
    if centered[last] < GONE**2 * values[last]:
        return math.sqrt(float(values[0] / values[last - 1]))
    return kappa.value
