"""Exact zeros against accuracy: L1 in the loss, and in three spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs, not_above_zero
from wellcond.evidence.workloads import Workload, workload

STRENGTHS = {
    "loss": (3e-4, 1e-3, 3e-3, 6e-3, 1e-2, 3e-2),
    "euclidean": (0.1, 0.2, 0.4, 0.6, 0.8, 1.2),
    "original": (3e-4, 1e-3, 3e-3, 6e-3, 1e-2, 3e-2),
    "intrinsic": (0.01, 0.02, 0.04, 0.08, 0.15, 0.3),
}
"""From a few zeros to a network that is lost; the same number of each."""


class SparsityOfL1(Claim):
    """With Adam, L1 in the loss makes no weight exactly zero; on the intrinsic parameters, by proximal steps, it makes
    zeros at almost no loss of accuracy, and at least as many as in the euclidean and the original space.
    """

    source = "theory 4.3 and 4.5; paper, on regularization"
    size = (6.4, 4.4)
    cases = ("digits, MLP", "digits, convolution", "breast cancer, MLP")
    shown = {
        "intrinsic": "zeros at one point of accuracy: intrinsic",
        "original": "original",
        "euclidean": "euclidean",
        "loss": "L1 in the loss, zeros at any strength",
        "accuracy": "accuracy without L1",
    }

    def holds(self, runs: Runs) -> bool:
        """No weight is zero with L1 in the loss, at any strength and seed; and the share of zeros that costs at most
        one point of test accuracy (between strengths by straight lines) is at least 30 % in intrinsic space, with a
        mean over seeds that is at most two standard errors below that of euclidean and of original space.
        """
        intrinsic = runs["intrinsic"]
        fewer = [runs[space] - intrinsic for space in ("euclidean", "original")]
        return not runs["loss"].any() and bool(intrinsic.mean() >= 0.3) and all(map(not_above_zero, fewer))

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        work, steps = workload(case, seed=seed), 200 if quick else 600
        _, accuracy = train(work, "loss", 0.0, steps, seed)
        figures: dict[str, float | Sequence[float]] = {"accuracy": accuracy}
        for space, strengths in STRENGTHS.items():
            chosen = strengths[::2] if quick else strengths
            shares, accuracies = zip(*(train(work, space, s, steps, seed) for s in chosen), strict=True)
            free = zeros_for_free((0.0, *shares), (accuracy, *accuracies), accuracy - 0.01)
            figures[space] = max(shares) if space == "loss" else free
            figures |= {f"{space} shares": shares, f"{space} accuracies": accuracies}
        return figures

    def plot(self, results: Results, ax: Axes) -> None:
        for runs, style in zip(results, ("-o", "--s", ":^"), strict=True):
            for space, color in zip(STRENGTHS, ("gray", "C1", "C2", "C0"), strict=True):
                shares, accuracies = (100 * runs.mean(f"{space} {what}") for what in ("shares", "accuracies"))
                ax.plot(shares, accuracies, style, ms=3, color=color, label=f"{runs.case}: {space}")
        ax.set(xlabel="weights that are exactly zero, %", ylabel="test accuracy, %, mean over seeds", ylim=(60, 100))


def train(work: Workload, space: str, strength: float, steps: int, seed: int) -> tuple[float, float]:
    """Share of exact zeros among the weights, and test accuracy, after Adam in batches of 32 with L1 in a space."""
    model, in_loss = work.model(seed), space == "loss"
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
    penalty = wc.penalties.L1(0.0 if in_loss else strength)
    handle = wc.regularize(optimizer, penalty, space="euclidean" if in_loss else space)
    weights = handle.parameters()

    def with_l1(output: Tensor, target: Tensor) -> Tensor:
        return work.loss_fn(output, target) + strength * torch.stack([w.abs().sum() for w in weights]).sum()

    trained = replace(work, loss_fn=with_l1) if in_loss else work
    trained.descend(model, optimizer, steps, batch=32, seed=seed)
    return handle.sparsity().fraction, work.accuracy(model)


def zeros_for_free(shares: Sequence[float], accuracies: Sequence[float], floor: float) -> float:
    """The largest share of zeros where the accuracy, in straight lines from point to point, is at least a floor.

    >>> zeros_for_free((0.0, 0.5, 1.0), (0.9, 0.9, 0.7), 0.8)
    0.75
    """
    order = np.argsort(shares, kind="stable")
    x, y = np.array(shares)[order], np.array(accuracies)[order]
    last = int(np.flatnonzero(y >= floor)[-1])
    if last + 1 == len(x):
        return float(x[last])
    return float(round(x[last] + (x[last + 1] - x[last]) * (y[last] - floor) / (y[last] - y[last + 1]), 12))
