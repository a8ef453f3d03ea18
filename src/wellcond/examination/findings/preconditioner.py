"""Does the optimizer's preconditioner improve the conditioning? (theory, sections 2.2 and 3.2)."""

from __future__ import annotations

import math
from functools import partial

import torch

from wellcond.display import capitalized, number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.hooks import carried_by
from wellcond.linalg import Estimate
from wellcond.preconditioners import Momentum, unwrapped_optimizer
from wellcond.problem import TrainingRun
from wellcond.trials import Effect, NoEffect

MATTERS = 2.0
"""A judgment: for less than a factor of 2 nobody should change an optimizer."""

MOMENTUM = 0.9
"""Of the SGD that is tried instead."""

SHARES = (0.05, 0.2, 0.8)
"""Rates to try it at, of its stability bound."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """κ_eff of PᵀGP against that of G where their intervals are apart, else κ̄."""
    plain, own = m.figures.get("gauss_newton"), m.figures.get("gauss_newton_preconditioned")
    if plain is None or own is None or m.optimizer is None:
        return None
    name, before, after = "κ_eff", plain.kappa_effective, own.kappa_effective
    meaning = "the steps that gradient descent needs for the loss that is left to win go in proportion"
    if not (before.apart_from(after) or (_bounded(before) and _bounded(after))):
        name, before, after = "κ̄", plain.kappa_mean, own.kappa_mean
        meaning = "this is about the spectrum as a whole; κ_eff, which steps go with, can't be told apart"
    if not (before.defined and after.defined):
        return None
    evidence = {"without": before, "with": after}
    figures = f"{name} of Gauss-Newton is {after} with its preconditioner and {before} without"
    optimizer, text = m.optimizer.name, f"{capitalized(meaning)}."
    better, apart = before.low > after.high, before.apart_from(after)
    over, under = (before, after) if better else (after, before)
    exact = _bounded(over) and _bounded(under)
    factor = over.value / under.value if exact else over.low / under.high
    times = f"{number(factor)} times" if exact else f"at least {number(factor)} times"
    if max(before.high / after.low, after.high / before.low) < MATTERS or (apart and factor < MATTERS):
        title = f"{optimizer} changes the conditioning little: {figures}."
        return Finding("preconditioner", Severity.GOOD, title, text, evidence)
    if not apart:
        title = f"Whether {optimizer} improves the conditioning can't be told at this effort: {figures}."
        text = "The intervals overlap; more products (without --quick) make them narrower."
        return Finding("preconditioner", Severity.GOOD, title, text, evidence)
    if better:
        title = f"{optimizer} makes the conditioning {times} better: {figures}."
        return Finding("preconditioner", Severity.GOOD, title, text, evidence)
    title = f"{optimizer} makes the conditioning {times} worse: {figures}."
    text = f"Here and now plain gradient descent is better conditioned; {meaning}."
    rate, effect = _without(m, subject)
    if not effect:
        return Finding("preconditioner", Severity.NOTICE, title, text, evidence)
    if not effect.saves():
        text += f" In a trial SGD at its best rate of some is no better than {optimizer} all the same."
        return Finding("preconditioner", Severity.GOOD, title, text, evidence)
    remedy = f"optimizer = torch.optim.SGD(model.parameters(), lr={number(rate)}, momentum={MOMENTUM})"
    return Finding("preconditioner", Severity.NOTICE, title, text, evidence, remedy, effect)


def _without(m: Measurements, subject: Subject) -> tuple[float, Effect | NoEffect]:
    """SGD at the best of a few rates, and its effect."""
    plain = m.figures.get("hessian") or m.figures["gauss_newton"]
    if not plain.largest.low > 0 or (subject.optimizer is not None and carried_by(subject.optimizer)):
        return math.nan, NoEffect()
    bound = Momentum.heavy_ball(MOMENTUM).bound / plain.largest.high
    return subject.trials.best({share * bound: partial(_as_sgd, lr=share * bound) for share in SHARES})


def _as_sgd(run: TrainingRun, lr: float) -> TrainingRun:
    held = [p for group in unwrapped_optimizer(run.optimizer).param_groups for p in group["params"]]
    optimizer = torch.optim.SGD(held, lr=lr, momentum=MOMENTUM)
    return TrainingRun(run.model, run.loss_fn, run.data, optimizer, run.loss)


def _bounded(e: Estimate) -> bool:
    return e.defined and math.isfinite(e.high)
