"""One file a finding: `find(measurements)` gives a `Finding`, or None where it does not apply."""

from collections.abc import Callable

from wellcond.examination.finding import Finding
from wellcond.examination.findings import inputs, learning_rate, negative_curvature, preconditioner, unreached
from wellcond.examination.measurements import Measurements

FINDINGS: list[Callable[[Measurements], Finding | None]] = [
    inputs.find,
    learning_rate.find,
    preconditioner.find,
    negative_curvature.find,
    unreached.find,
]
