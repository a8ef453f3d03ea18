"""A layer's Gauss-Newton block row by row, and the curvature of the loss by the layer's outputs."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev, vmap

from wellcond.evidence.workloads import Workload


def kappa_by_outputs(work: Workload, model: nn.Sequential, place: int) -> Tensor:
    """κ(S) of each of a layer's rows, over all examples and positions, (rows,); ∞ or near it where S isn't definite."""
    S = curvature_by_outputs(work, model, place)
    return S[:, :, -1].amax(1) / S[:, :, 0].amin(1).clamp_min(0)


def curvature_by_outputs(work: Workload, model: nn.Sequential, place: int) -> Tensor:
    """Eigenvalues of S, the Gauss-Newton curvature of an example's loss by each output of a layer.

    Returns:
        (rows, examples, positions), rising; of a convolution a row has an output at each position, else one.
    """
    x, y = work.train
    out, after, rest = model(x).detach(), model[: place + 1](x).detach(), model[place + 1 :]
    J = vmap(jacrev(lambda a: rest(a[None])[0]))(after).detach()
    C = vmap(hessian(lambda o, target: work.loss_fn(o[None], target[None])))(out, y)
    J = J.flatten(3) if J.ndim > 3 else J[..., None]
    return torch.linalg.eigvalsh(torch.einsum("noip,noq,nqir->inpr", J, C, J))


def row_blocks(layer: nn.Module, block: Tensor) -> Tensor:
    """The diagonal blocks of each row [b_i; W_i] of a layer's (n, n) block, (rows, columns of Ĥ, columns of Ĥ)."""
    weight = cast(Tensor, layer.weight)
    rows, columns = len(weight), weight[0].numel()
    places = [[rows * columns + i, *range(i * columns, (i + 1) * columns)] for i in range(rows)]
    return torch.stack([block[p][:, p] for p in places])


def kappa_star(matrices: Tensor) -> Tensor:
    """κ* of each positive semidefinite matrix, (m,): of the eigenvalues that are not zero to rounding.

    >>> kappa_star(torch.diag(torch.tensor([8.0, 2.0, 0.0]))[None])
    tensor([4.])
    """
    values = torch.linalg.eigvalsh(matrices)
    cut = values.shape[1] * torch.finfo(values.dtype).eps * values[:, -1:]
    return values[:, -1] / values.where(values > cut, math.inf).amin(1)
