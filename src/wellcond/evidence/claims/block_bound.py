"""The bound of a layer's curvature by its loss's and its inputs'."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev, vmap

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs, pairs_alike
from wellcond.evidence.workloads import Workload, workload

ACTIVATIONS = {"tanh": nn.Tanh, "ReLU": nn.ReLU}
DATA = ("digits, MLP", "diabetes, MLP", "digits, convolution")


class BlockBound(Claim):
    """κ of the Gauss-Newton block of a layer's row is at most κ(S)·κ(Ĥ)², S the curvature by the row's outputs, where S
    is positive definite; and κ(Ĥ)², before and after standardizing, ranks the blocks, also with ReLU.
    """

    source = "theory 5.1 and 5.2; paper, on normalization"
    cases = tuple(f"{data}, {activation}" for activation in ACTIVATIONS for data in DATA)
    shown = {
        "ranked": "pairs that κ(Ĥ)² ranks rightly",
        "tightest": "largest κ(block) / bound",
        "looseness": "bound / κ(block), median",
        "definite": "rows with S positive definite",
    }

    def holds(self, runs: Runs) -> bool:
        """No block's κ is above the bound by more than 1 % (rounding) in any row with S positive definite; and of two
        layers, as they are or standardized, the one with the larger κ(Ĥ)² has the larger κ(block), the median of its
        rows, in 75 % of all pairs (half-way between a coin and certainty).
        """
        return bool((runs["tightest"] <= 1.01).all() and runs.mean("ranked") >= 0.75)

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        name, activation = case.rsplit(", ", 1)
        work = in_unit_range(workload(name, examples=60 if quick else 150, standardized=False, seed=seed))
        model = with_activation(work.model(seed), activation)
        work.descend(model, torch.optim.Adam(model.parameters(), lr=0.003), 100)
        return figures(work, model)

    def plot(self, results: Results, ax: Axes) -> None:
        for i, runs in enumerate(results):
            style = {"color": f"C{i % 3}", "fillstyle": "full" if "tanh" in runs.case else "none"}
            dots, *_ = ax.loglog(runs["squares"].T, runs["blocks"].T, "o", markersize=4, **style)
            dots.set_label(runs.case)
        ax.set(xlabel="κ(Ĥ)²", ylabel="κ(block), median of a layer's rows")


def figures(work: Workload, model: nn.Sequential) -> Figures:
    """Of every layer, as it is and standardized, κ(Ĥ)² and κ of its rows' blocks, held against each other."""
    problem = work.problem(model)
    squares, blocks, looseness, definite = [], [], [], []
    for layer in wc.layer_conditioning(problem):
        of_loss = kappa_by_outputs(work, model, int(layer.name))
        positive = of_loss < 1e12
        definite.append(positive.double().mean())
        for normalization, kappa in ((None, layer.kappa), ("standardized", layer.standardized)):
            rows = kappa_star(row_blocks(model[int(layer.name)], wc.layer_block(problem, layer, normalization).dense()))
            squares.append(kappa.value**2)
            blocks.append(float(rows.nanmedian()))
            looseness.append((of_loss * squares[-1] / rows)[positive])
    ratios = torch.cat(looseness)
    right, pairs = pairs_alike(list(zip(squares, blocks, strict=True)))
    return {
        "ranked": right / pairs,
        "tightest": 1 / float(ratios.min()),
        "looseness": float(ratios.median()),
        "definite": float(torch.stack(definite).mean()),
        "squares": squares,
        "blocks": blocks,
    }


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


def in_unit_range(work: Workload) -> Workload:
    """With the training inputs over the largest of them, where tanh has a slope."""
    x, y = work.train
    return replace(work, train=(x / x.abs().max(), y))


def with_activation(model: nn.Module, name: str) -> nn.Sequential:
    """The same layers with one of ACTIVATIONS for ReLU."""
    kind = ACTIVATIONS[name]
    return nn.Sequential(*(kind() if isinstance(layer, nn.ReLU) else layer for layer in model.children()))
