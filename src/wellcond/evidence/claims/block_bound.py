"""The bound of a layer's curvature by its loss's and its inputs'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev, vmap

import wellcond as wc
from wellcond.evidence.claim import Claim, Figures, Runs
from wellcond.evidence.order import pairs_alike
from wellcond.evidence.workloads import Workload, workload


class BlockBound(Claim):
    """κ of the Gauss-Newton block of a layer's row is at most κ(S)·κ(Ĥ)², S the curvature by the row's outputs, where S
    is positive definite; and κ(Ĥ)², before and after standardizing, ranks the blocks, also with ReLU.
    """

    name = "block-bound"
    source = "theory 5.1 and 5.2; paper, on normalization"
    rule = (
        "no block's κ is above the bound by more than 1 % (rounding) in any row with S positive definite; and of two "
        "layers, as they are or standardized, the one with the larger κ(Ĥ)² has the larger κ(block), the median of its "
        "rows, in 75 % of all pairs (half-way between a coin and certainty)"
    )
    cases = tuple(
        f"{data}, {activation}"
        for activation in ("tanh", "ReLU")
        for data in ("digits, MLP", "diabetes, MLP", "digits, convolution")
    )
    shown = {
        "ranked": "pairs that κ(Ĥ)² ranks rightly",
        "tightest": "largest κ(block) / bound",
        "looseness": "bound / κ(block), median",
        "definite": "rows with S positive definite",
    }

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        name, activation = case.rsplit(", ", 1)
        work = workload(name, examples=60 if quick else 150, standardized=False, seed=seed)
        x, y = work.train
        work = replace(work, train=(x / x.abs().max(), y))  # tanh of 0 to 16 has no slope left
        model = cast(nn.Sequential, work.model(seed))
        if activation == "tanh":
            model = nn.Sequential(*(nn.Tanh() if isinstance(m, nn.ReLU) else m for m in model))
        work.descend(model, torch.optim.Adam(model.parameters(), lr=0.003), 100)
        return figures(work, model)

    def holds(self, runs: Runs) -> bool:
        return bool((runs["tightest"] <= 1.01).all() and runs.mean("ranked") >= 0.75)

    def plot(self, results: Sequence[Runs], ax: Any) -> None:
        for i, runs in enumerate(results):
            fill = "full" if "tanh" in runs.case else "none"
            ax.loglog(runs["squares"].T, runs["blocks"].T, "o", color=f"C{i % 3}", fillstyle=fill, markersize=4)
            ax.plot([], [], "o", color=f"C{i % 3}", fillstyle=fill, label=runs.case)
        ax.set(xlabel="κ(Ĥ)²", ylabel="κ(block), median of a layer's rows")
        ax.legend(fontsize=7)


def figures(work: Workload, model: nn.Sequential) -> Figures:
    """Of every layer, as it is and standardized, κ(Ĥ)² and κ of its rows' blocks, held against each other."""
    problem = work.problem(model)
    squares, blocks, looseness, definite = [], [], [], []
    for layer in wc.layer_conditioning(problem):
        S = curvature_by_outputs(work, model, int(layer.name))
        of_loss = S[:, :, -1].amax(1) / S[:, :, 0].amin(1).clamp_min(0)
        positive = of_loss < 1e12
        definite.append(positive.double().mean())
        for normalization, kappa in ((None, layer.kappa), ("standardized", layer.standardized)):
            rows = kappas(row_blocks(model[int(layer.name)], wc.layer_block(problem, layer, normalization).dense()))
            squares.append(kappa.value**2)
            blocks.append(float(rows.nanmedian()))
            looseness.append((of_loss * squares[-1] / rows)[positive])
    ratios = torch.cat(looseness)
    right, pairs = pairs_alike(squares, blocks)
    return {
        "ranked": right / pairs,
        "tightest": 1 / float(ratios.min()),
        "looseness": float(ratios.median()),
        "definite": float(torch.stack(definite).mean()),
        "squares": squares,
        "blocks": blocks,
    }


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


def kappas(matrices: Tensor) -> Tensor:
    """κ* of each positive semidefinite matrix, (m,): of the eigenvalues that are not zero to rounding.

    >>> kappas(torch.diag(torch.tensor([8.0, 2.0, 0.0]))[None])
    tensor([4.])
    """
    values = torch.linalg.eigvalsh(matrices)
    cut = values.shape[1] * torch.finfo(values.dtype).eps * values[:, -1:]
    return values[:, -1] / values.where(values > cut, math.inf).amin(1)
