"""Batch-norm preconditioning against batch norm, also where a batch is too small for one."""

from __future__ import annotations

import torch
from torch import nn

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.plots import row_a_case
from wellcond.evidence.workloads import Workload, workload

RAW = " as they are"
RATES = [10 ** (k / 2) for k in range(-4, 3)]
BATCHES = {
    "digits, MLP": (64, 4, 1),
    "digits as they are, MLP": (64, 1),  # of 0 to 16; the others are standardized
    "breast cancer, MLP": (64, 1),
    "digits, convolution": (64, 2),
}
WAYS = {"plain": (64, 4, 2, 1), "batch norm": (64, 4, 2), "BNP": (64, 4, 2, 1), "BNP, ρ = 0.9": (64,)}
"""With the batches that each is tried at."""


class BNP(Claim):
    """Preconditioning the gradient by what batch norm would do brings the loss lower in as many steps than plain SGD,
    as low as batch norm at batches of 64, and lower where batches are of 1 to 4.
    """

    source = "theory 5.3; Lange, Helfrich and Ye, JMLR 23 (2022)"
    cases = tuple(f"{data}, batches of {batch}" for data, batches in BATCHES.items() for batch in batches)
    shown = {
        "over plain": "loss / plain SGD's",
        "over batch norm": "loss / batch norm's",
        "shorter memory": "with ρ = 0.9: loss / plain SGD's",
        "BNP": "loss",
        "rate": "its best learning rate",
    }

    def holds(self, runs: Runs) -> bool:
        """Training loss after 300 steps, each way with its best of learning rates half a decade apart, geometric mean
        over seeds: BNP's is lower than plain SGD's; and than batch norm's, at batches of 64 up to 1.5 times as high;
        batch norm is not defined in an MLP for batches of 1; ρ is 0.99, BNP's default, another one decides nothing.
        """
        limit = 1.5 if runs.case.endswith("64") else 1.0
        return runs.geometric_mean("over plain") < 1 and not runs.geometric_mean("over batch norm") >= limit

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        name, _, size = case.rpartition(", batches of ")
        work, batch = workload(name.replace(RAW, ""), standardized=RAW not in name, seed=seed), int(size)
        steps, rates = (100, RATES[::2]) if quick else (300, RATES)
        ways = [way for way, batches in WAYS.items() if batch in batches]
        losses = {way: [trained(work, way, rate, batch, seed, steps) for rate in rates] for way in ways}
        best = {way: min(x) for way, x in losses.items()}
        return best | {
            "shorter memory": best.get("BNP, ρ = 0.9", torch.nan) / best["plain"],
            "over plain": best["BNP"] / best["plain"],
            "over batch norm": best["BNP"] / best.get("batch norm", torch.nan),
            "rate": rates[losses["BNP"].index(best["BNP"])],
        }

    def plot(self, results: Results, ax: Axes) -> None:
        for i, way in enumerate(WAYS):
            row_a_case(ax, results, way, lower=0.2 * (i - 1), fmt="o", label=way)
        ax.invert_yaxis()
        ax.set(xlabel="training loss at the end", xscale="log")


def trained(work: Workload, way: str, rate: float, batch: int, seed: int, steps: int) -> float:
    """The training loss after SGD, as inference sees it; infinite where it is not finite."""
    model = with_batch_norm(work.model(seed)) if way == "batch norm" else work.model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    if way.startswith("BNP"):
        wc.precondition(optimizer, wc.BatchNormPreconditioner(model, momentum=0.9 if "ρ" in way else 0.99))
    work.descend(model, optimizer, steps, batch=batch, seed=seed)
    return work.value(model.eval())


def with_batch_norm(model: nn.Module) -> nn.Sequential:
    """The same layers with batch norm between each linear layer or convolution and its activation."""
    layers: list[nn.Module] = []
    *hidden, last = model.children()
    for layer in hidden:
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
        elif isinstance(layer, nn.Linear):
            layers.append(nn.BatchNorm1d(layer.out_features))
    return nn.Sequential(*layers, last).double()
