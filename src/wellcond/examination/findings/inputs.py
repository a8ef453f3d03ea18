"""Are the inputs scaled? (theory, section 5.2)."""

from __future__ import annotations

from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.normalization import LayerConditioning

WORTH_IT = 3.0
"""κ of the layer's Hessian block goes with κ(Ĥ)²: a factor of 3 here is about 10 in gradient steps."""

SEVERE = 10.0
"""About 100 in gradient steps."""


def find(m: Measurements) -> Finding | None:
    """The first layer that sees the data themselves, as they are against standardized."""
    layer = next((layer for layer in m.layers if layer.is_input), None)
    if layer is None or not layer.kappa.defined or not layer.standardized.defined:
        return None
    gain = layer.kappa.value / layer.standardized.value
    evidence = {"kappa": layer.kappa, "standardized": layer.standardized}
    if gain < WORTH_IT:
        return Finding(
            "inputs",
            Severity.GOOD,
            f"The inputs are well scaled: κ of the first layer's extended inputs is {layer.kappa}; standardized it "
            f"would be {layer.standardized}.",
            f"Standardizing would gain {_named(layer)} less than a factor of {WORTH_IT:g}.",
            evidence,
        )
    return Finding(
        "inputs",
        Severity.SEVERE if gain >= SEVERE else Severity.NOTICE,
        f"The inputs are not scaled: κ of the first layer's extended inputs is {layer.kappa}; standardized it would be "
        f"{layer.standardized}.",
        f"The mean of the inputs of {_named(layer)} makes {layer.mean_share:.0%} of the largest eigenvalue "
        "of their second moment, and columns of unequal size make the rest. The Hessian block of this layer is "
        "conditioned about as the square of κ, and gradient descent needs that many times more steps.",
        evidence,
        "mean, std = X.mean(0), X.std(0)\n"
        "X = (X - mean) / torch.where(std > 0, std, 1.0)   # and the same mean and std for every later input",
    )


def _named(layer: LayerConditioning) -> str:
    return f"layer “{layer.name}”" if layer.name else "the model"
