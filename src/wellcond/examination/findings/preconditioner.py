"""Does the optimizer's preconditioner improve the conditioning? (theory, sections 2.2 and 3.2)."""

from __future__ import annotations

import math

from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.linalg import Estimate, number

HELPS = 2.0
"""Under a factor of 2 in steps the preconditioner does not pay for its state."""


def find(m: Measurements) -> Finding | None:
    """κ_eff of PᵀGP against that of G; κ̄ where κ_eff is not known on both sides."""
    plain, own = m.figures.get("gauss_newton"), m.figures.get("gauss_newton_preconditioned")
    if plain is None or own is None or m.optimizer is None:
        return None
    name, before, after = _comparable(plain.kappa_effective, own.kappa_effective, plain.kappa_mean, own.kappa_mean)
    if before is None or after is None:
        return None
    gain = before.value / after.value
    evidence = {f"{name} without": before, f"{name} with": after}
    title = f"{m.optimizer.name} makes the conditioning {_words(gain)}: {name} is {number(after.value)} with its "
    title += f"preconditioner and {number(before.value)} without."
    if gain >= HELPS:
        text, severity = "The steps that gradient descent needs go down in proportion.", Severity.GOOD
    elif gain > 1 / HELPS:
        text, severity = "Here the adaptive scaling makes little difference.", Severity.NOTICE
    else:
        text = "Here the adaptive scaling hurts: plain gradient descent is better conditioned at this point."
        severity = Severity.NOTICE
    return Finding("preconditioner", severity, title, text, evidence)


def _comparable(
    eff_before: Estimate, eff_after: Estimate, mean_before: Estimate, mean_after: Estimate
) -> tuple[str, Estimate | None, Estimate | None]:
    # "At least" on either side can't be compared, and overlapping intervals say nothing about the order.
    for name, before, after in (("κ_eff", eff_before, eff_after), ("κ̄", mean_before, mean_after)):
        apart = before.low > after.high or after.low > before.high
        if _bounded(before) and _bounded(after) and apart:
            return name, before, after
    return "", None, None


def _bounded(e: Estimate) -> bool:
    return e.defined and math.isfinite(e.value) and math.isfinite(e.high)


def _words(gain: float) -> str:
    return f"{number(gain)} times better" if gain >= 1 else f"{number(1 / gain)} times worse"
