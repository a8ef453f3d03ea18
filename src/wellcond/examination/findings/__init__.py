"""One file a finding: `find(measurements, subject)` gives a `Finding`, or None where it does not apply."""

from collections.abc import Callable

from wellcond.examination.finding import Finding
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
from wellcond.examination.measurements import Measurements
from wellcond.examination.subject import Subject

Find = Callable[[Measurements, Subject], Finding | None]

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
