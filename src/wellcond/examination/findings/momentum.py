"""Does the momentum go with the conditioning? (theory, section 2.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from wellcond.display import number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.remedies import set_code, set_groups
from wellcond.linalg import Estimate
from wellcond.problem import TrainingRun
from wellcond.stability import TARGET, EdgeRatio
from wellcond.trials import Effect, NoEffect

ILL_CONDITIONED = 100.0
"""From here on momentum needs a fifth of gradient descent's steps: √κ for κ, each with its constant."""

HIGH = 0.95
"""Up to here momentum is what people use without looking: its average spans 20 steps."""

MEMORY = 3.0
"""Times longer than the suggested momentum's: from there on it remembers gradients of a valley's other side."""

MOST = 0.95
"""Suggested at most: a trial, and most phases of training, are too short for an average over more than 20 steps."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """β against β = ((√κ−1)/(√κ+1))² for κ = κ_eff of the curvature that the optimizer sees, decided by trial."""
    figures, optimizer = m.of("gauss_newton"), subject.optimizer
    if figures is None or optimizer is None or m.edge is None:
        return None
    kappa = figures.kappa_effective
    betas = {_momentum(group) for group in optimizer.param_groups}
    if not kappa.defined or len(betas) != 1 or not m.edge.ratio.high > 0:
        return None
    beta = betas.pop()
    suggested = suggested_momentum(kappa.certain)
    if beta == 0 and isinstance(optimizer, torch.optim.SGD) and kappa.low >= ILL_CONDITIONED:
        return _missing(m.edge, subject, kappa, min(suggested, MOST))
    # Unresolved, κ may well suggest such a momentum; then the trial alone says.
    if beta is not None and beta > HIGH and (kappa.unresolved or 1 - suggested > MEMORY * (1 - beta)):
        return _high(m.edge, subject, kappa, beta)
    return None


def suggested_momentum(kappa: float) -> float:
    """β of theory section 2.1."""
    return ((math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)) ** 2


def _missing(edge: EdgeRatio, subject: Subject, kappa: Estimate, beta: float) -> Finding | None:
    # Heavy ball is stable up to (2 + 2β)/λ_max, gradient descent up to 2/λ_max (theory, section 2.3).
    half = TARGET / edge.ratio.high
    (_, factor), effect = _tried(subject, {(beta, 1.0), (beta, half * (1 + beta))})
    evidence = {"kappa_effective": kappa, "suggested_momentum": Estimate.exactly(beta, "from κ_eff")}
    title = f"There is no momentum, and κ_eff is {kappa}: it suggests {number(beta)}."
    text = (
        "Gradient descent needs steps in proportion to κ, heavy ball to its square root. The suggestion is that of a "
        "quadratic with this κ, the rate stays at most at half of its stability bound."
    )
    if not effect:
        return Finding("momentum", Severity.NOTICE, title, text, evidence, _code(subject, beta, 1.0), effect)
    control = subject.trials.effect(partial(_set, momentum=0.0, factor=half))
    rate_alone = bool(control and not Effect("", control.with_remedy, effect.with_remedy).saves())
    if rate_alone or not effect.saves():
        other = "larger" if half > 1 else "smaller"
        why = f"what it wins in a trial a {other} rate wins too" if rate_alone else "a trial with it saves little"
        return Finding("momentum", Severity.GOOD, f"{title[:-1]}, but {why}.", text, evidence)
    return Finding("momentum", Severity.NOTICE, title, text, evidence, _code(subject, beta, factor), effect)


def _high(edge: EdgeRatio, subject: Subject, kappa: Estimate, beta: float) -> Finding | None:
    lower = 0.9
    averaged = subject.optimizer is not None and "momentum" not in subject.optimizer.param_groups[0]
    # Where momentum adds up, a rate that goes on as fast in the long run, at most half of its bound.
    as_fast = min((1 - lower) / (1 - beta), TARGET / edge.ratio.high * (1 + lower) / (1 + beta))
    (_, factor), effect = _tried(subject, {(lower, 1.0)} if averaged else {(lower, 1.0), (lower, as_fast)})
    if not effect or not effect.saves():
        return None
    evidence = {"kappa_effective": kappa, "momentum": Estimate.exactly(beta, "the optimizer's setting")}
    suggested = "" if kappa.unresolved else f", and κ_eff = {kappa} suggests {number(suggested_momentum(kappa.value))}"
    title = f"The momentum is high: it is {beta:g}, an average over {number(1 / (1 - beta))} steps{suggested}."
    text = (
        "An average over more steps than a valley takes to cross carries the parameters up its other side: the loss "
        f"oscillates. On copies of the run a momentum of {lower} ends lower."
    )
    return Finding("momentum", Severity.NOTICE, title, text, evidence, _code(subject, lower, factor), effect)


def _momentum(group: Mapping[str, Any]) -> float | None:
    """β of an optimizer's group; None where it has none to set."""
    if "momentum" in group:
        return float(group["momentum"])
    return float(group["betas"][0]) if "betas" in group else None


def _set(run: TrainingRun, momentum: float, factor: float) -> None:
    set_groups(run, lambda group: {**_setting(group, momentum), "lr": group["lr"] * factor})


def _setting(group: Mapping[str, Any], momentum: float) -> dict[str, Any]:
    return {"momentum": momentum} if "momentum" in group else {"betas": (momentum, *group["betas"][1:])}


def _tried(subject: Subject, settings: set[tuple[float, float]]) -> tuple[tuple[float, float], Effect | NoEffect]:
    """The best of some (β, factor of the rates)."""
    return subject.trials.best({(beta, c): partial(_set, momentum=beta, factor=c) for beta, c in sorted(settings)})


def _code(subject: Subject, momentum: float, factor: float) -> str:
    assert subject.optimizer is not None
    setting = _setting(subject.optimizer.param_groups[0], float(f"{momentum:.2g}"))
    return set_code(subject.optimizer, factor, **setting)
