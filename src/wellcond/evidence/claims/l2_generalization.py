"""How L2 generalizes in both spaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import wellcond as wc
from wellcond.evidence.claim import Claim, Figures, Runs
from wellcond.evidence.workloads import Workload, workload

INTRINSIC = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ORIGINAL = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Strengths: from almost none to far too much for each workload."""

Optimizers = Callable[..., torch.optim.Optimizer]


class L2Generalization(Claim):
    """Under Adam, L2 on the intrinsic parameters generalizes at least as well as L2 on the original ones, each at its
    best strength.
    """

    name = "l2-generalization"
    source = "theory 4.2; paper, on regularization"
    rule = (
        "ln of intrinsic / original test loss, each the least over its strengths with the same seed, has a mean over "
        "seeds that is at most two standard errors above zero"
    )
    cases = ("digits, MLP", "digits, convolution", "breast cancer, MLP", "diabetes, MLP")
    shown = {
        "advantage": "ln(test loss, intrinsic / original), each at its best",
        "intrinsic": "test loss, intrinsic",
        "original": "test loss, original",
        "none": "test loss without a penalty",
    }

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        losses = partial(losses_on_test, workload(case, seed=seed), seed=seed, steps=150 if quick else 1000)
        build = partial(torch.optim.Adam, lr=1e-2, fused=True)
        intrinsic = losses(build, "intrinsic", INTRINSIC)
        original = losses(build, "original", ORIGINAL)
        none = losses(build, "intrinsic", (0.0,))[0]
        return {
            "advantage": advantage(intrinsic, original),
            "intrinsic": min(intrinsic),
            "original": min(original),
            "none": none,
            "intrinsic losses": intrinsic,
            "original losses": original,
        }

    def holds(self, runs: Runs) -> bool:
        return not_worse(runs["advantage"])

    def plot(self, results: Sequence[Runs], ax: Any) -> None:
        for runs, color in zip(results, ("C0", "C1", "C2", "C3"), strict=True):
            for space, strengths, style in (("intrinsic", INTRINSIC, "-o"), ("original", ORIGINAL, "--s")):
                losses = runs.mean(f"{space} losses")
                ax.loglog(strengths, losses, style, ms=3, color=color, label=f"{runs.case}: {space}")
        ax.set(xlabel="strength τ, in the unit of its space", ylabel="test loss, mean over seeds")
        ax.legend(fontsize=6)


def losses_on_test(
    work: Workload, build: Optimizers, space: str, strengths: Sequence[float], *, steps: int, seed: int
) -> list[float]:
    """Test loss after training in batches of 32 with L2 in a space, for each strength, from the same weights."""
    found = []
    for strength in strengths:
        model = work.model(seed)
        optimizer = build(model.parameters())
        wc.regularize(optimizer, wc.penalties.L2(strength), space=space, model=model)
        work.descend(model, optimizer, steps, batch=32, seed=seed)
        with torch.no_grad():
            found.append(float(work.loss(model, test=True)))
    return found


def advantage(one: Sequence[float], other: Sequence[float]) -> float:
    """ln of the least of one's losses over the least of the other's: below zero if one is better."""
    return math.log(min(one) / min(other))


def not_worse(advantages: np.ndarray) -> bool:
    """Whether the mean is at most two standard errors above zero, the shape being (seeds,)."""
    return bool(advantages.mean() <= 2 * advantages.std(ddof=1) / math.sqrt(len(advantages)))
