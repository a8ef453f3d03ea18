"""Is the learning rate near what the curvature allows? (theory, section 2.3)."""

from __future__ import annotations

import math
from functools import partial

from wellcond.display import number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.remedies import scale_rates, set_code
from wellcond.stability import TARGET, EdgeRatio
from wellcond.trials import Effect, NoEffect

NEAR = 0.5
"""A curvature that doubles takes such a run over the edge."""

FAR = 0.02
"""A rate fifty times larger would still be stable: something else than stability sets it."""

LARGER = (10.0, 100.0, 1000.0)
"""Factors that a rate far below the bound is tried with, the two largest that stay under `TARGET` of the bound: less
than ten times is tuning."""

WINS = 0.1
"""The share of the loss that a larger rate must win, and it must win `TIMES` what the run does as it is: below, both
train, and a schedule or the validation loss has its say."""

TIMES = 5.0

OVER = 2.0
"""Full-batch training hovers at 1, and adaptive methods up to some 1.5: up to here a rate is too large only where a
smaller one ends lower."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The edge ratio, and the learning rate at which it would be one."""
    edge = m.edge
    if edge is None or subject.optimizer is None:
        return None
    evidence = {"edge_ratio": edge.ratio, "allowed_learning_rate": edge.allowed}
    lr, ratio = number(edge.learning_rate), edge.ratio
    if math.isinf(edge.allowed.value):
        title = f"Nothing bounds the learning rate, which is {lr}, from above here."
        return Finding("learning_rate", Severity.GOOD, title, f"{edge.allowed.how.capitalize()}.", evidence)
    at = f"at {number(ratio.value)} of" if ratio.value < 1 else f"{number(ratio.value)} times"
    title = f"The learning rate is {at} its stability bound: it is {lr}, and the bound is {edge.allowed}."
    if ratio.high > NEAR:
        severity, text, remedy, effect = _near_or_above(edge, subject)
        return Finding("learning_rate", severity, title, text, evidence, remedy, effect)
    if ratio.high < FAR:
        found = _larger(m, subject)
        if found is not None:
            factor, effect = found
            text = (
                "Far from the edge, and slow: steps that are far larger are stable by the curvature, and on copies of "
                f"the run they win at least {TIMES:g} times as much of the loss."
            )
            remedy = set_code(subject.optimizer, factor)
            return Finding("learning_rate", Severity.NOTICE, title, text, evidence, remedy, effect)
        text = (
            "Far from the edge: stability is not what keeps the rate from being larger. Whether a larger one would "
            "train faster, the noise of the gradient and the further course of training decide."
        )
        return Finding("learning_rate", Severity.GOOD, title, text, evidence)
    return Finding("learning_rate", Severity.GOOD, title, "Stable, with room for a curvature that grows.", evidence)


def _near_or_above(edge: EdgeRatio, subject: Subject) -> tuple[Severity, str, str, Effect | NoEffect]:
    """Severity, text, remedy and effect of a rate of which more than `NEAR` of the bound can't be excluded."""
    assert subject.optimizer is not None
    ratio = edge.ratio
    factor = TARGET / ratio.value if ratio.value > TARGET else 0.5
    effect = subject.trials.effect(partial(scale_rates, factor=factor))
    better = effect.better if effect else None
    if ratio.low > 1 and (better or (ratio.low > OVER and better is None)):
        text = (
            "The step is locally unstable: with curvature and preconditioner as they are, the steepest direction grows "
            "from step to step. An optimizer that adapts may recover by itself, at the price of a spike."
        )
        return Severity.SEVERE, text, set_code(subject.optimizer, factor), effect
    if ratio.low > 1:
        text = "The step is locally unstable, with curvature and preconditioner as they are; "
    else:
        text = (
            "Close to the edge of stability, where full-batch training is known to hover: little more curvature, or a "
            "larger rate, makes the steepest direction grow; "
        )
    if better is False:
        text += (
            f"but on copies of the run {number(factor)} times the rate ends at a larger loss: nothing is to be done."
        )
        return Severity.NOTICE, text, "", effect
    if better:
        return Severity.NOTICE, text + "a smaller rate ends lower.", set_code(subject.optimizer, factor), effect
    return Severity.NOTICE, text + "whether a smaller rate would do better can't be told.", "", effect


def _larger(m: Measurements, subject: Subject) -> tuple[float, Effect] | None:
    """A factor for a rate far below the bound, and its effect, where it wins clearly more."""
    assert m.edge is not None
    most = TARGET / m.edge.ratio.high if m.edge.ratio.high > 0 else math.inf
    if m.settings.quick and m.edge.ratio.high > FAR / 10:
        return None  # ten steps tell too little for what they cost
    factors = [factor for factor in LARGER if factor <= most][-2:]
    factor, effect = subject.trials.best({factor: partial(scale_rates, factor=factor) for factor in factors})
    if not effect:
        return None
    wins, won = m.loss - effect.with_remedy.high, max(0.0, m.loss - effect.without.low)
    return (factor, effect) if wins > max(WINS * abs(m.loss), TIMES * won) else None
