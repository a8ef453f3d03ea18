"""Gradient descent at many learning rates side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from wellcond.evidence.workloads import Workload


def descents(work: Workload, model: nn.Module, rates: Sequence[float], steps: int) -> Tensor:
    """The lowest loss so far after each step of full-batch gradient descent at each rate, (rates, steps + 1)."""
    x, y = work.train
    descend = vmap(grad_and_value(lambda p: work.loss_fn(functional_call(model, p, (x,)), y)))
    points = {name: p.detach().expand(len(rates), *p.shape) for name, p in model.named_parameters()}
    each, losses = torch.tensor(rates, dtype=work.dtype), []
    for _ in range(steps + 1):
        gradients, loss = descend(points)
        losses.append(loss.nan_to_num(math.inf))
        points = {name: p - each.view(-1, *(1,) * (p.ndim - 1)) * gradients[name] for name, p in points.items()}
    return torch.stack(losses, 1).cummin(1).values


def steps_to(loss: float, curves: Tensor) -> float:
    """The first step after which one of some falling curves, (rates, steps), is at a loss; infinite if none ever is.

    >>> steps_to(2.0, torch.tensor([[5.0, 4.0, 3.0], [5.0, 3.0, 2.0]]))
    2.0
    """
    reached = (curves <= loss).any(0)
    return float(reached.to(torch.uint8).argmax()) if bool(reached.any()) else math.inf
