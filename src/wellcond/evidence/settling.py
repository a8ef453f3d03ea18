"""A training that comes to rest, and means over its further steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import wellcond as wc
from wellcond.evidence.workloads import Workload

PARTS = 20
"""Of a training, each at its learning rate."""


def settle(
    work: Workload,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    last: float,
    batch: int | None,
    seed: int,
    steps: int,
) -> None:
    """Train for PARTS of so many steps, at learning rates that fall by the same factor each time, to the last."""
    (group,) = optimizer.param_groups
    first = group["lr"]
    for part in range(PARTS):
        group["lr"] = first * (last / first) ** (part / (PARTS - 1))
        work.descend(model, optimizer, steps, batch=batch, seed=seed + 100 * part)


def averages(
    work: Workload,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Sequence[Tensor],
    batch: int | None,
    seed: int,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Means over every second of some further steps, for the weights whose sign stays: p, the gradient of the whole
    training set, 1/P, each (n,)."""
    points, gradients, inverses = [], [], []
    for part in range(steps // 2):
        P = wc.preconditioner_of(optimizer).over(weights, [""] * len(weights))
        inverses.append(1 / P.diagonal())
        gradients.append(torch.cat([x.flatten() for x in torch.autograd.grad(work.loss(model), weights)]))
        points.append(torch.cat([w.detach().flatten() for w in weights]))
        work.descend(model, optimizer, 2, batch=batch, seed=seed + 10_000 + part)
    signs = torch.stack(points).sign()
    stays = (signs == signs[0]).all(0)
    p, g, inverse = (torch.stack(x).mean(0)[stays] for x in (points, gradients, inverses))
    return p, g, inverse
