"""One file per finding: `find(measurements, subject)` gives a `Finding`, or None where it does not apply."""

from wellcond.examination.finding import Find
from wellcond.examination.findings import (
    dead_units,
    epsilon,
    gradient_noise,
    inputs,
    l1_in_loss,
    layer_conditioning,
    learning_rate,
    momentum,
    negative_curvature,
    normalization,
    not_measured,
    precision,
    preconditioner,
    unreached,
    update_ratio,
    weight_decay,
)

FINDINGS: list[Find] = [
    inputs.find,
    learning_rate.find,
    momentum.find,
    epsilon.find,
    weight_decay.find,
    l1_in_loss.find,
    gradient_noise.find,
    update_ratio.find,
    precision.find,
    preconditioner.find,
    negative_curvature.find,
    unreached.find,
    dead_units.find,
    layer_conditioning.find,
    normalization.find,
    not_measured.find,  # last: the others may fail
]
