"""AdamW is Adam with intrinsic L2; the same for AdaGrad and RMSProp."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

import wellcond as wc
from wellcond.evidence.claim import Claim, Figures, Runs
from wellcond.evidence.claims.l2_generalization import Optimizers, advantage, losses_on_test, not_worse
from wellcond.evidence.workloads import Workload, workload

ORIGINAL = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
GAINS: dict[str, tuple[Optimizers, Sequence[float]]] = {
    "Adagrad": (partial(torch.optim.Adagrad, lr=3e-2), (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
    "RMSprop": (partial(torch.optim.RMSprop, lr=3e-3), (0.1, 0.3, 1.0, 2.0, 5.0)),
}
"""Optimizers, and strengths in intrinsic space: Adagrad's steps become shorter, the decay's do not."""


class AdamWIsIntrinsic(Claim):
    """Adam with L2 on the intrinsic parameters is AdamW; AdaGrad and RMSProp gain from L2 on theirs too: they
    generalize at least as well with it as with L2 on the original ones.
    """

    name = "adamw"
    source = "theory 4.2; paper, on regularization"
    rule = (
        "the weights of the two are within 1e-9 (relative) at every step of each seed; and for AdaGrad and RMSProp "
        "each ln of intrinsic / original test loss, both the least over their strengths, has a mean over seeds that is "
        "at most two standard errors above zero"
    )
    cases = ("digits, MLP", "digits, convolution", "breast cancer, MLP")
    shown = {
        "distance": "AdamW and Adam with intrinsic L2: largest relative distance of weights",
        "Adam": "AdamW and Adam with original L2: the same",
        "Adagrad": "AdaGrad: ln(test loss, intrinsic / original), each at its best",
        "RMSprop": "RMSProp: the same",
        "Adagrad over none": "AdaGrad: ln(test loss, intrinsic at its best / no penalty)",
        "RMSprop over none": "RMSProp: the same",
    }

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        work = workload(case, seed=seed)
        apart = {space: distances(work, space, seed, 100 if quick else 300) for space in ("intrinsic", "original")}
        gains = {}
        for name, (build, strengths) in GAINS.items():
            losses = partial(losses_on_test, work, build, seed=seed, steps=100 if quick else 600)
            intrinsic, original = losses("intrinsic", strengths), losses("original", ORIGINAL)
            gains[name] = advantage(intrinsic, original)
            gains[f"{name} over none"] = advantage(intrinsic, losses("intrinsic", (0.0,)))
        return gains | {
            "distance": max(apart["intrinsic"]),
            "Adam": max(apart["original"]),
            "intrinsic distances": apart["intrinsic"],
            "original distances": apart["original"],
        }

    def holds(self, runs: Runs) -> bool:
        return bool((runs["distance"] <= 1e-9).all()) and all(not_worse(runs[name]) for name in GAINS)

    def plot(self, results: Sequence[Runs], ax: Any) -> None:
        for runs, color in zip(results, ("C0", "C1", "C2"), strict=True):
            for space, style in (("intrinsic", "-"), ("original", "--")):
                apart = runs[f"{space} distances"][0].clip(1e-17)[::3]
                steps = range(1, 1 + 3 * len(apart), 3)
                ax.semilogy(steps, apart, style, color=color, label=f"{runs.case}: Adam with {space} L2")
        ax.set(xlabel="step", ylabel="relative distance from AdamW's weights\n(0 drawn as 1e-17), first seed")
        ax.legend(fontsize=7)


def distances(work: Workload, space: str, seed: int, steps: int) -> list[float]:
    """‖p − p'‖/‖p'‖ after each step, p of Adam with L2 of strength 0.1 in a space, p' of torch's AdamW."""
    models = work.model(seed), work.model(seed)
    adam = torch.optim.Adam(models[0].parameters(), lr=3e-3)
    wc.regularize(adam, wc.penalties.L2(0.1), space=space, params="all")
    adamw = torch.optim.AdamW(models[1].parameters(), lr=3e-3, weight_decay=0.1)
    batches = work.batches(32, seed)
    apart = []
    for _ in range(steps):
        x, y = next(batches)
        for model, optimizer in zip(models, (adam, adamw), strict=True):
            optimizer.zero_grad()
            work.loss_fn(model(x), y).backward()
            optimizer.step()
        p, q = (torch.nn.utils.parameters_to_vector(model.parameters()).detach() for model in models)
        apart.append(float((p - q).norm() / q.norm()))
    return apart
