"""Is the learning rate near what the curvature allows? (theory, section 2.3)."""

from __future__ import annotations

import math

from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.examination.run import TrainingRun
from wellcond.examination.subject import Subject
from wellcond.linalg import number
from wellcond.preconditioners.reading import unwrapped_optimizer

NEAR = 0.5
"""A curvature that doubles takes such a run over the edge."""

FAR = 0.02
"""A rate fifty times larger would still be stable: something else than stability sets it."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The edge ratio, and the learning rate at which it would be one."""
    edge = m.edge
    if edge is None:
        return None
    evidence = {"edge_ratio": edge.ratio, "allowed_learning_rate": edge.allowed}
    lr, ratio = number(edge.learning_rate), edge.ratio
    if math.isinf(edge.allowed.value):
        return Finding(
            "learning_rate",
            Severity.GOOD,
            f"Nothing bounds the learning rate, which is {lr}, from above here.",
            f"{edge.allowed.how.capitalize()}.",
            evidence,
        )
    at = f"at {number(ratio.value)} of" if ratio.value < 10 else f"{number(ratio.value)} times"
    title = f"The learning rate is {at} its stability bound: it is {lr}, and the bound is {edge.allowed}."
    if ratio.low > 1:
        factor = 0.5 / ratio.value
        return Finding(
            "learning_rate",
            Severity.SEVERE,
            title,
            "The step is locally unstable: with curvature and preconditioner as they are, the steepest direction grows "
            "from step to step. An optimizer that adapts may recover by itself, at the price of a spike.",
            evidence,
            f"for group in optimizer.param_groups:\n    group['lr'] *= {factor:.2g}",
            subject.trials.effect(lambda run: scale_rates(run, factor)),
        )
    if ratio.high > NEAR:
        text = (
            "Close to the edge of stability, where full-batch training is known to hover: little more curvature, or a "
            "larger rate, makes the steepest direction grow."
        )
        return Finding("learning_rate", Severity.NOTICE, title, text, evidence)
    text = "Stable, with room for a curvature that grows."
    if ratio.value < FAR:
        text = (
            "Far from the edge: stability is not what keeps the rate from being larger. Whether a larger one would "
            "train faster, the noise of the gradient and the further course of training decide."
        )
    return Finding("learning_rate", Severity.GOOD, title, text, evidence)


def scale_rates(run: TrainingRun, factor: float) -> None:
    """Multiply every group's learning rate."""
    for group in unwrapped_optimizer(run.optimizer).param_groups:
        group["lr"] = group["lr"] * factor
