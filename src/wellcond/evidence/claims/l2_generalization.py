"""How L2 generalizes in both spaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs, crossed, not_above_zero
from wellcond.evidence.plots import row_a_case
from wellcond.evidence.workloads import Build, Workload, workload

OPTIMIZERS: dict[str, tuple[Build, Sequence[float]]] = {
    "Adam": (partial(torch.optim.Adam, lr=1e-2, fused=True), (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)),
    # Its steps become shorter, the decay's do not.
    "AdaGrad": (partial(torch.optim.Adagrad, lr=3e-2), (3e-3, 1e-2, 2e-2, 4e-2, 1e-1, 3e-1)),
    "RMSProp": (partial(torch.optim.RMSprop, lr=3e-3), (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)),
}
"""Optimizers with their strengths in intrinsic space: from almost none to far too much for each workload."""

ORIGINAL = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""The same in original space."""


class L2Generalization(Claim):
    """Under Adam, AdaGrad and RMSProp L2 on the intrinsic parameters generalizes at least as well as L2 on the original
    ones, each at its best strength.
    """

    source = "theory 4.2; paper, on regularization"
    cases = (
        *crossed(["Adam"], ["digits, MLP", "digits, convolution", "breast cancer, MLP", "diabetes, MLP"]),
        *crossed(["AdaGrad", "RMSProp"], ["digits, convolution", "breast cancer, MLP"]),
    )
    shown = {
        "advantage": "ln(test loss, intrinsic / original), each at its best",
        "intrinsic": "test loss, intrinsic",
        "original": "test loss, original",
        "none": "test loss without a penalty",
    }

    def holds(self, runs: Runs) -> bool:
        """ln of intrinsic / original test loss, each the least over its strengths with the same seed, has a mean over
        seeds that is at most two standard errors above zero.
        """
        return not_above_zero(runs["advantage"])

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        name, data = case.split(": ")
        build, strengths = OPTIMIZERS[name]
        train = partial(loss_on_test, workload(data, seed=seed), build, seed=seed, steps=100 if quick else 600)
        intrinsic, original = [train("intrinsic", s) for s in strengths], [train("original", s) for s in ORIGINAL]
        return {
            "advantage": math.log(min(intrinsic) / min(original)),
            "intrinsic": min(intrinsic),
            "original": min(original),
            "none": train("intrinsic", 0.0),
            "intrinsic losses": intrinsic,
            "original losses": original,
        }

    def plot(self, results: Results, ax: Axes) -> None:
        row_a_case(ax, results, "advantage", errors=2.0, fmt="o", label="intrinsic L2, ± 2 standard errors")
        none = [math.log(runs.geometric_mean("none") / runs.geometric_mean("original")) for runs in results]
        ax.plot(none, range(len(results)), "x", color="gray", label="no penalty")
        ax.axvline(0, color="gray", lw=0.5)
        ax.invert_yaxis()
        ax.set(xlabel="ln(test loss / test loss with original L2), best strengths", ylabel="optimizer: data, network")


def loss_on_test(work: Workload, build: Build, space: str, strength: float, *, steps: int, seed: int) -> float:
    """After training in batches of 32 with L2 in a space."""
    model = work.model(seed)
    optimizer = build(model.parameters())
    wc.regularize(optimizer, wc.penalties.L2(strength), space=space, model=model)
    work.descend(model, optimizer, steps, batch=32, seed=seed)
    return work.value(model, test=True)
