"""The path of an optimizer under our attachment, and that of the same optimizer over z, by torch alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import wellcond as wc
from wellcond.evidence.workloads import Build, Workload, put_back


def parting(
    work: Workload, model: nn.Module, P: wc.Preconditioner, build: Build, attach: Any, steps: int
) -> list[float]:
    """‖p − Pz‖ over the distance travelled after each full-batch step; the model is put back.

    Args:
        work: data and loss.
        model: where both start.
        P: over the model's parameters.
        build: the optimizer, of p and of z.
        attach: our attachment of P to the optimizer of p, `wc.precondition` or `wc.reparameterize`.
        steps: of both.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    P = P.over(parameters, names)  # in the model's order
    start = parameters_to_vector(parameters).detach()
    curve = []
    with put_back(model):
        optimizer = build(parameters)
        handle = attach(optimizer, P)
        for Pz in islice(descent_in_z(work, model, P, build), steps):
            work.descend(model, optimizer, 1)
            p = parameters_to_vector(parameters).detach()
            curve.append(float((p - Pz).norm() / (Pz - start).norm()))
        handle.remove()
    return curve


def descent_in_z(work: Workload, model: nn.Module, P: wc.Preconditioner, build: Build) -> Iterator[Tensor]:
    """Pz after each full-batch step of an optimizer over z, whose gradient torch takes of z ↦ L(Pz), without end.

    It starts at the model, which it leaves alone. P is over the model's parameters in the model's order, and so is what
    it yields, (n,).
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    z = [nn.Parameter(x) for x in P.invert([p.detach().clone() for p in parameters])]
    optimizer = build(z)
    x, y = work.train
    while True:
        optimizer.zero_grad()
        out = torch.func.functional_call(model, dict(zip(names, P.apply(z), strict=True)), (x,))
        work.loss_fn(out, y).backward()
        optimizer.step()
        yield torch.cat([p.detach().flatten() for p in P.apply(z)])
