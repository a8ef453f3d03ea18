"""Is the learning rate near what the curvature allows? (theory, section 2.3)."""

from __future__ import annotations

import math

from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.linalg import number

NEAR = 0.5
"""Above half of the bound the fastest direction oscillates for an optimizer without momentum."""

FAR = 0.02
"""Under a fiftieth of the bound no direction moves by more than 4 % of its distance a step."""


def find(m: Measurements) -> Finding | None:
    """The edge ratio, and the learning rate at which it would be one."""
    edge = m.edge
    if edge is None:
        return None
    evidence = {"edge_ratio": edge.ratio, "allowed_learning_rate": edge.allowed}
    lr = number(edge.learning_rate)
    if math.isinf(edge.allowed.value):
        return Finding(
            "learning_rate",
            Severity.GOOD,
            f"No positive curvature bounds the learning rate, which is {lr}.",
            "The largest eigenvalue of the preconditioned curvature is not positive here.",
            evidence,
        )
    ratio = edge.ratio.value
    title = (
        f"The learning rate is at {number(ratio)} of its stability bound: it is {lr}, and "
        f"{number(edge.allowed.value)} is the largest that the curvature allows here."
    )
    if ratio > 1:
        text = "The step is locally unstable: along the steepest direction each step overshoots by more than the last."
        severity, remedy = (
            Severity.SEVERE,
            f"for group in optimizer.param_groups: group['lr'] *= {0.5 / ratio:.2g}",
        )
        if edge.ratio.low <= 1:
            text = "The step is at the edge of stability, where full-batch training is known to hover."
            severity = Severity.NOTICE
    elif ratio > NEAR:
        text = "Near the edge: the steepest direction oscillates, and a larger rate will diverge along it."
        severity, remedy = Severity.NOTICE, ""
    elif ratio < FAR:
        text = "Far below the edge: stability is not what limits the rate; gradient noise or a schedule may."
        severity = Severity.NOTICE
        remedy = f"for group in optimizer.param_groups: group['lr'] *= {0.2 / ratio:.2g}   # try, and measure again"
    else:
        text, severity, remedy = "Stable, and not needlessly small.", Severity.GOOD, ""
    return Finding("learning_rate", severity, title, text, evidence, remedy)
