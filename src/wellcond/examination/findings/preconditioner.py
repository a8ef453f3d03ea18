"""Does the optimizer's preconditioner improve the conditioning? (theory, sections 2.2 and 3.2)."""

from __future__ import annotations

import math

from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.linalg import Estimate, number

MATTERS = 2.0
"""Factors under 2 come and go within an epoch."""


def find(m: Measurements) -> Finding | None:
    """κ_eff of PᵀGP against that of G, or κ̄ where κ_eff is known from below only."""
    plain, own = m.figures.get("gauss_newton"), m.figures.get("gauss_newton_preconditioned")
    if plain is None or own is None or m.optimizer is None:
        return None
    name, before, after = "κ_eff", plain.kappa_effective, own.kappa_effective
    meaning = "the steps that gradient descent needs for the loss that is left to win go in proportion"
    if not (_bounded(before) and _bounded(after)):
        name, before, after = "κ̄", plain.kappa_mean, own.kappa_mean
        meaning = "this is about the spectrum as a whole; κ_eff, which steps go with, is known from below only"
    if not (_bounded(before) and _bounded(after)):
        return None
    evidence = {"without": before, "with": after}
    figures = f"{name} of Gauss-Newton is {after} with its preconditioner and {before} without"
    gain, optimizer = before.value / after.value, m.optimizer.name
    if before.low <= after.high and after.low <= before.high:
        return Finding(
            "preconditioner",
            Severity.GOOD,
            f"Whether {optimizer} improves the conditioning can't be told at this effort: {figures}.",
            "The intervals overlap; more products (without --quick) make them narrower.",
            evidence,
        )
    if gain >= MATTERS:
        title = f"{optimizer} makes the conditioning {number(gain)} times better: {figures}."
        return Finding("preconditioner", Severity.GOOD, title, f"{_sentence(meaning)}.", evidence)
    if gain > 1 / MATTERS:
        title = f"{optimizer} changes the conditioning little: {figures}."
        return Finding("preconditioner", Severity.GOOD, title, f"{_sentence(meaning)}.", evidence)
    title = f"{optimizer} makes the conditioning {number(1 / gain)} times worse: {figures}."
    text = f"Here and now plain gradient descent is better conditioned; {meaning}."
    return Finding("preconditioner", Severity.NOTICE, title, text, evidence)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _bounded(e: Estimate) -> bool:
    return e.defined and math.isfinite(e.value) and math.isfinite(e.high)
