"""Where training with an intrinsic penalty settles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.workloads import Workload, one_layer, workload

PARTS = 20
"""Of a training, each at its learning rate."""


class Setting(NamedTuple):
    """How a case is trained: v̂ has to follow a gradient that settles (β₂ = 0.95), or to average over one that goes on
    moving (0.999). The learning rate falls from `lr` to `last`; `averaged` further steps are averaged over.
    """

    strength: float
    lr: float
    last: float
    steps: int
    batch: int | None = None
    beta2: float = 0.95
    averaged: int = 200


CASES = {
    "full batch, small steps: diabetes, linear model": Setting(0.3, 1e-2, 1e-4, 2000),
    "full batch, small steps: breast cancer, logistic model": Setting(0.2, 2e-2, 1e-4, 2000),
    "full batch, small steps: digits, MLP": Setting(0.05, 1e-2, 1e-4, 3000),
    # The oscillation swells and dies down over some thousand steps.
    "full batch, large steps: diabetes, linear model": Setting(0.03, 5e-2, 5e-2, 6000, beta2=0.999, averaged=2000),
    "batches: breast cancer, logistic model": Setting(0.1, 1e-2, 1e-3, 2000, batch=32, beta2=0.999),
    "batches: digits, MLP": Setting(0.05, 3e-3, 3e-4, 3000, batch=32, beta2=0.999),
    "batches: digits, convolution": Setting(0.04, 3e-3, 3e-4, 3000, batch=32, beta2=0.999, averaged=400),
    "AdamW, full batch: diabetes, linear model": Setting(5.0, 1e-2, 1e-3, 2000),
    "AdamW, full batch: digits, MLP": Setting(5.0, 1e-2, 1e-3, 3000),
}


class RestPoint(Claim):
    """Adam with intrinsic L1 of strength τ settles, full batch and with α·λ_max(H)/τ² under the bound, at the ordinary
    lasso of strength τ²; with larger steps or under gradient noise where |E g| = τ·v̂^(1/4). AdamW with the full batch
    settles at |p| = 1/τ wherever g ≠ 0.
    """

    source = "theory 4.6"
    size = (6.4, 4.4)
    cases = tuple(CASES)
    shown = {
        "ratio": "measured / predicted, median over weights",
        "near": "weights within 10 % of the prediction",
        "lasso": "|E g|/τ², median over weights that are not zero",
        "zeros": "share of zeros",
        "kept": "zeros with |E g| ≤ 1.1 of the prediction",
        "edge": "α·λ_max(H)/(38 τ²) at the end",
    }

    def holds(self, runs: Runs) -> bool:
        """For each seed what is measured (|E g| of weights that are not zero; AdamW: |p| of weights with |g| over a
        hundredth of the largest) over what is predicted has a median within 10 % of 1, and for at least 95 % of the
        weights at zero |E g| is at most 1.1 times the prediction.
        """
        return bool(((abs(runs["ratio"] - 1) <= 0.1) & (runs["kept"] >= 0.95)).all())

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        (how, task), setting = case.split(": "), CASES[case]
        decay = how.startswith("AdamW")
        work = one_layer(task, seed) if task.endswith("model") else workload(task, width=8, seed=seed)
        model = work.model(seed)
        optimizer = Adam(model.parameters(), lr=setting.lr, betas=(0.9, setting.beta2), fused=True)
        penalty = wc.penalties.L2(setting.strength) if decay else wc.penalties.L1(setting.strength)
        weights = wc.regularize(optimizer, penalty, model=model).parameters()
        steps = setting.steps // (50 if quick else PARTS)
        settle(work, model, optimizer, setting, seed, steps)
        p, g, inverse = averages(work, model, optimizer, weights, setting, seed)
        top = float(wc.eigenvalues(wc.Hessian(work.problem(model))).values[0])
        ratios, zero = over_prediction(how, p, g, inverse, setting.strength), p == 0
        ratio, kept = ratios[g.abs() > 1e-2 * g.abs().max() if decay else ~zero], ratios[zero] <= 1.1
        return {
            "ratio": float(ratio.median()),
            "near": float(((ratio - 1).abs() <= 0.1).double().mean()),
            "lasso": math.nan if decay else float(g[~zero].abs().median()) / setting.strength**2,
            "zeros": float(zero.double().mean()),
            "kept": float(kept.double().mean()) if len(kept) else 1.0,
            "edge": setting.last * top / (38 * setting.strength**2),
            "quantiles": ratio.quantile(torch.linspace(0, 1, 101, dtype=ratio.dtype)).tolist(),
        }

    def plot(self, results: Results, ax: Axes) -> None:
        for runs in results:
            ax.semilogy(range(101), runs["quantiles"][0], label=runs.case)
        ax.axhline(1, color="gray", lw=0.5)
        ax.set(xlabel="weights below, %, first seed", ylabel="measured / predicted", ylim=(0.2, 5))


def over_prediction(how: str, p: Tensor, g: Tensor, inverse: Tensor, strength: float) -> Tensor:
    """|p|τ under AdamW; |g|/τ² for small steps, |g|/(τ·v̂^(1/4)) otherwise; (n,) from weights, gradients and 1/P."""
    if how.startswith("AdamW"):
        return p.abs() * strength
    return g.abs() / (strength**2 if how.endswith("small steps") else strength * inverse)


def settle(work: Workload, model: nn.Module, optimizer: Optimizer, setting: Setting, seed: int, steps: int) -> None:
    """Train in PARTS of some steps each, at learning rates that fall by the same factor each time, to the last."""
    (group,) = optimizer.param_groups
    for part in range(PARTS):
        group["lr"] = setting.lr * (setting.last / setting.lr) ** (part / (PARTS - 1))
        work.descend(model, optimizer, steps, batch=setting.batch, seed=seed + 100 * part)


def averages(
    work: Workload, model: nn.Module, optimizer: Optimizer, weights: Sequence[Tensor], setting: Setting, seed: int
) -> list[Tensor]:
    """Means over every second of some further steps, for the weights whose sign stays: p, the gradient of the whole
    training set, 1/P, each (n,).
    """
    seen = []
    for part in range(setting.averaged // 2):
        P = wc.preconditioner_of(optimizer).over(weights, [""] * len(weights))
        gradients = torch.autograd.grad(work.loss(model), weights)
        p, g = (torch.cat([x.detach().flatten() for x in tensors]) for tensors in (weights, gradients))
        seen.append((p, g, 1 / P.diagonal()))
        work.descend(model, optimizer, 2, batch=setting.batch, seed=seed + 10_000 + part)
    p, g, inverse = (torch.stack(x) for x in zip(*seen, strict=True))
    stays = (p.sign() == p[0].sign()).all(0)
    return [x.mean(0)[stays] for x in (p, g, inverse)]
