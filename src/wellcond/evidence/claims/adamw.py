"""AdamW is Adam with intrinsic L2; the same for AdaGrad and RMSProp."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.plots import key
from wellcond.evidence.workloads import Workload, workload

LR, STRENGTH = 3e-3, 0.1
OPTIMIZERS = {"Adam": "-", "Adagrad": ":", "RMSprop": "-."}
"""Of torch, with their lines in the plot."""


class AdamWIsIntrinsic(Claim):
    """Adam with L2 on the intrinsic parameters is AdamW, and not Adam with L2 on the original ones; L2 on the intrinsic
    parameters of AdaGrad and RMSProp is a decay of the weights beside their steps in the same way.
    """

    source = "theory 4.2; paper, on regularization"
    cases = ("digits, MLP", "digits, convolution", "breast cancer, MLP", "characters, transformer")
    shown = {
        "Adam": "Adam with intrinsic L2 and AdamW: largest relative distance of weights",
        "Adagrad": "AdaGrad with intrinsic L2 and with a decay by hand: the same",
        "RMSprop": "RMSProp: the same",
        "original": "Adam with original L2 and AdamW: the distance at the end",
    }

    def holds(self, runs: Runs) -> bool:
        """For each seed the weights of the two are within 1e-9 (relative) after every step, for all three optimizers,
        and those of Adam with original L2 end more than 1e-2 from AdamW's.
        """
        same = all(bool((runs[name] <= 1e-9).all()) for name in OPTIMIZERS)
        return same and bool((runs["original"] > 1e-2).all())

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        work, steps = workload(case, seed=seed), 50 if quick else 200
        apart = {name: distances(work, name, "intrinsic", seed, steps) for name in OPTIMIZERS}
        original = distances(work, "Adam", "original", seed, steps)
        curves = {f"{name} distances": curve for name, curve in apart.items()} | {"original distances": original}
        return {name: max(curve) for name, curve in apart.items()} | {"original": original[-1]} | curves

    def plot(self, results: Results, ax: Axes) -> None:
        for i, runs in enumerate(results):
            ax.semilogy(runs["original distances"][0], "--", color=f"C{i}", label=f"{runs.case}: Adam, original L2")
            for name, style in OPTIMIZERS.items():
                ax.semilogy(runs[f"{name} distances"][0].clip(1e-18), style, color=f"C{i}")
        key(ax, {"Adam, intrinsic L2": "k-", "AdaGrad, intrinsic L2": "k:", "RMSProp, intrinsic L2": "k-."})
        ax.set(xlabel="step", ylabel="relative distance from decayed weights\n(0 drawn as 1e-18), first seed")


def distances(work: Workload, name: str, space: str, seed: int, steps: int) -> list[float]:
    """‖p − p'‖/‖p'‖ after each step: p of an optimizer of torch with L2 in a space, p' of torch's AdamW, or of AdaGrad
    or RMSProp whose weights are decayed by hand."""
    kind, ours, decayed = getattr(torch.optim, name), work.model(seed), work.model(seed)
    optimizer = kind(ours.parameters(), lr=LR)
    wc.regularize(optimizer, wc.penalties.L2(STRENGTH), space=space, params="all")
    if name == "Adam":
        twin = torch.optim.AdamW(decayed.parameters(), lr=LR, weight_decay=STRENGTH)
    else:
        twin = kind(decayed.parameters(), lr=LR)
        twin.register_step_pre_hook(lambda *_: decay(decayed))
    apart = []
    for batch in itertools.islice(work.batches(32, seed), steps):
        replace(work, train=batch).descend(ours, optimizer, 1)
        replace(work, train=batch).descend(decayed, twin, 1)
        p, q = (torch.nn.utils.parameters_to_vector(model.parameters()).detach() for model in (ours, decayed))
        apart.append(float((p - q).norm() / q.norm()))
    return apart


def decay(model: torch.nn.Module) -> None:
    """What AdamW does to the weights before its step."""
    for p in model.parameters():
        p.data.mul_(1 - LR * STRENGTH)
