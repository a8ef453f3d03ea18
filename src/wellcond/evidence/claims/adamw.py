"""AdamW is Adam with intrinsic L2; the same for AdaGrad and RMSProp."""

from __future__ import annotations

import torch

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.plots import key
from wellcond.evidence.workloads import Workload, workload

LR, STRENGTH = 3e-3, 0.1


class AdamWIsIntrinsic(Claim):
    """Adam with L2 on the intrinsic parameters is AdamW, and not Adam with L2 on the original ones; L2 on the intrinsic
    parameters of AdaGrad and RMSProp is a decay of the weights beside their steps in the same way.
    """

    name = "adamw"
    source = "theory 4.2; paper, on regularization"
    rule = (
        "for each seed the weights of the two are within 1e-9 (relative) after every step, for all three optimizers, "
        "and those of Adam with original L2 end more than 1e-2 from AdamW's"
    )
    cases = ("digits, MLP", "digits, convolution", "breast cancer, MLP", "characters, transformer")
    shown = {
        "Adam": "Adam with intrinsic L2 and AdamW: largest relative distance of weights",
        "Adagrad": "AdaGrad with intrinsic L2 and with a decay by hand: the same",
        "RMSprop": "RMSProp: the same",
        "original": "Adam with original L2 and AdamW: the distance at the end",
    }

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        work, steps = workload(case, seed=seed), 50 if quick else 200
        apart = {name: distances(work, name, "intrinsic", seed, steps) for name in ("Adam", "Adagrad", "RMSprop")}
        original = distances(work, "Adam", "original", seed, steps)
        curves = {f"{name} distances": curve for name, curve in apart.items()} | {"original distances": original}
        return {name: max(curve) for name, curve in apart.items()} | {"original": original[-1]} | curves

    def holds(self, runs: Runs) -> bool:
        same = all(bool((runs[name] <= 1e-9).all()) for name in ("Adam", "Adagrad", "RMSprop"))
        return same and bool((runs["original"] > 1e-2).all())

    def plot(self, results: Results, ax: Axes) -> None:
        for i, runs in enumerate(results):
            ax.semilogy(runs["original distances"][0], "--", color=f"C{i}", label=f"{runs.case}: Adam, original L2")
            for name, style in (("Adam", "-"), ("Adagrad", ":"), ("RMSprop", "-.")):
                ax.semilogy(runs[f"{name} distances"][0].clip(1e-18), style, color=f"C{i}")
        key(ax, {"Adam, intrinsic L2": "k-", "AdaGrad, intrinsic L2": "k:", "RMSProp, intrinsic L2": "k-."})
        ax.set(xlabel="step", ylabel="relative distance from decayed weights\n(0 drawn as 1e-18), first seed")
        ax.legend(fontsize=6)


def distances(work: Workload, name: str, space: str, seed: int, steps: int) -> list[float]:
    """‖p − p'‖/‖p'‖ after each step: p of an optimizer of torch with L2 in a space, p' of torch's AdamW, or of AdaGrad
    or RMSProp whose weights are decayed by hand."""
    models = work.model(seed), work.model(seed)
    kind, by_hand = getattr(torch.optim, name), name != "Adam"
    optimizer = kind(models[0].parameters(), lr=LR)
    wc.regularize(optimizer, wc.penalties.L2(STRENGTH), space=space, params="all")
    decayed = models[1].parameters()
    twin = kind(decayed, lr=LR) if by_hand else torch.optim.AdamW(decayed, lr=LR, weight_decay=STRENGTH)
    batches = work.batches(32, seed)
    apart = []
    for _ in range(steps):
        x, y = next(batches)
        for model, each in zip(models, (optimizer, twin), strict=True):
            each.zero_grad()
            work.loss_fn(model(x), y).backward()
            if each is twin and by_hand:
                torch._foreach_mul_([p.data for p in model.parameters()], 1 - LR * STRENGTH)
            each.step()
        p, q = (torch.nn.utils.parameters_to_vector(model.parameters()).detach() for model in models)
        apart.append(float((p - q).norm() / q.norm()))
    return apart
