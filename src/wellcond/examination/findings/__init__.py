"""One file a finding: `find(measurements, subject)` gives a `Finding`, or None where it does not apply."""

from collections.abc import Callable

from wellcond.examination.finding import Finding
from wellcond.examination.findings import inputs, learning_rate, negative_curvature, preconditioner, unreached
from wellcond.examination.measurements import Measurements
from wellcond.examination.subject import Subject

FINDINGS: list[Callable[[Measurements, Subject], Finding | None]] = [
    inputs.find,
    learning_rate.find,
    preconditioner.find,
    negative_curvature.find,
    unreached.find,
]
