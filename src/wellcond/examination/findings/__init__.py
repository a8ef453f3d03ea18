"""One file per finding: `find(measurements, subject)` gives a `Finding`, or None where it does not apply."""

from importlib import import_module

from wellcond.examination.finding import Find

NAMES = (
    "inputs",
    "learning_rate",
    "momentum",
    "epsilon",
    "weight_decay",
    "l1_in_loss",
    "gradient_noise",
    "update_ratio",
    "precision",
    "preconditioner",
    "negative_curvature",
    "unreached",
    "dead_units",
    "layer_conditioning",
    "normalization",
    "not_measured",  # last: the others may fail
)
"""The files of the findings, in the order in which they are looked for."""

FINDINGS: list[Find] = [import_module(f"{__name__}.{name}").find for name in NAMES]
