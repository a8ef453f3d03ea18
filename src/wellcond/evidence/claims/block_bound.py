"""The bound of a layer's curvature by its loss's and its inputs'."""

from __future__ import annotations

import torch
from torch import nn

import wellcond as wc
from wellcond.evidence.blocks import kappa_by_outputs, kappa_star, row_blocks
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.comparison import pairs_alike
from wellcond.evidence.tasks import ACTIVATIONS, in_unit_range, with_activation
from wellcond.evidence.workloads import Workload, workload

DATA = ("digits, MLP", "diabetes, MLP", "digits, convolution")


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
    cases = tuple(f"{data}, {activation}" for activation in ACTIVATIONS for data in DATA)
    shown = {
        "ranked": "pairs that κ(Ĥ)² ranks rightly",
        "tightest": "largest κ(block) / bound",
        "looseness": "bound / κ(block), median",
        "definite": "rows with S positive definite",
    }

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        name, activation = case.rsplit(", ", 1)
        work = in_unit_range(workload(name, examples=60 if quick else 150, standardized=False, seed=seed))
        model = with_activation(work.model(seed), activation)
        work.descend(model, torch.optim.Adam(model.parameters(), lr=0.003), 100)
        return figures(work, model)

    def holds(self, runs: Runs) -> bool:
        return bool((runs["tightest"] <= 1.01).all() and runs.mean("ranked") >= 0.75)

    def plot(self, results: Results, ax: Axes) -> None:
        for i, runs in enumerate(results):
            style = {"color": f"C{i % 3}", "fillstyle": "full" if "tanh" in runs.case else "none"}
            dots, *_ = ax.loglog(runs["squares"].T, runs["blocks"].T, "o", markersize=4, **style)
            dots.set_label(runs.case)
        ax.set(xlabel="κ(Ĥ)²", ylabel="κ(block), median of a layer's rows")
        ax.legend(fontsize=7)


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
    right, pairs = pairs_alike(squares, blocks)
    return {
        "ranked": right / pairs,
        "tightest": 1 / float(ratios.min()),
        "looseness": float(ratios.median()),
        "definite": float(torch.stack(definite).mean()),
        "squares": squares,
        "blocks": blocks,
    }
