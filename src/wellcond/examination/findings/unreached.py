"""Are there parameters that the loss does not depend on?"""

from __future__ import annotations

from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.examination.subject import Subject


def find(m: Measurements, subject: Subject) -> Finding | None:
    """Trainable parameters without a path to the loss: their curvature is zero."""
    if not m.unreached:
        return None
    names = ", ".join(m.unreached[:8]) + (" …" if len(m.unreached) > 8 else "")
    return Finding(
        "unreached",
        Severity.NOTICE,
        f"The loss does not reach {len(m.unreached)} trainable "
        f"{'parameter' if len(m.unreached) == 1 else 'parameters'}: {names}.",
        "Their gradient and curvature are zero, and they count in every mean over parameters. They are left over, or "
        "something on their way to the loss is detached.",
        remedy="\n".join(f"model.get_parameter({name!r}).requires_grad_(False)" for name in m.unreached[:8]),
    )
