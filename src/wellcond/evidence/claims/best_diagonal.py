"""How close adaptive scaling comes to the best diagonal scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import wellcond as wc
from wellcond.evidence.adaptive import ADAPTIVE, squared_diagonal, stops
from wellcond.evidence.claim import Claim, Figures, Runs
from wellcond.evidence.diagonal_scaling import best_scaling, condition
from wellcond.evidence.workloads import Workload, workload

PROBLEMS = ("breast cancer, logistic", "wine, least squares", "diabetes, network")
"""Each with one output, and no symmetry of the parameters: the curvature is positive definite as it is."""

SCALINGS = ("own", "Jacobi", "row norms")


class BestDiagonal(Claim):
    """The scaling of an adaptive optimizer comes near the best diagonal one: κ(PHP) near the least κ(DHD) of all
    diagonal D > 0. (Theory promises row norms the best row scaling, and only Jacobi a factor n of the best DHD.)
    """

    name = "best-diagonal"
    source = "theory 3.2; van der Sluis 1969"
    rule = (
        "κ(PHP) is nearer, in logarithm, to the least κ(DHD) than to κ(H), mean over seeds: P wins more than half of "
        "the decades that there are to win; and for each seed the least κ(DHD) is certified to within 5 %"
    )
    cases = tuple(f"{problem}: {optimizer}" for problem in PROBLEMS for optimizer in ADAPTIVE)
    shown = {
        "own": "part won of ln κ(H) − ln min κ(DHD): the optimizer's P",
        "Jacobi": "by Jacobi",
        "row norms": "by row norms",
        "kappa": "κ(H)",
        "best": "least κ(DHD)",
        "certified": "lower bound of it / it",
    }

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        problem, optimizer = case.split(": ")
        *_, (trained, P) = stops(definite(problem, seed), optimizer, seed, (300 if quick else 1000,))
        H = wc.GaussNewton(trained).dense()
        scalings = {
            "own": squared_diagonal(P).sqrt(),
            "Jacobi": H.diagonal().rsqrt(),
            "row norms": H.norm(dim=1).rsqrt(),
        }
        kappa, best = condition(H, torch.ones(len(H), dtype=H.dtype)), best_scaling(H)
        return {
            **{name: math.log(kappa / condition(H, D)) / math.log(kappa / best.kappa) for name, D in scalings.items()},
            "kappa": kappa,
            "best": best.kappa,
            "certified": best.bound / best.kappa,
        }

    def holds(self, runs: Runs) -> bool:
        return bool(runs.mean("own") > 0.5 and (runs["certified"] >= 0.95).all())

    def plot(self, results: Sequence[Runs], ax: Any) -> None:
        for name, marker in zip(SCALINGS, "osv", strict=True):
            parts, spreads = [r.mean(name) for r in results], [r.spread(name) for r in results]
            ax.errorbar(parts, range(len(parts)), xerr=spreads, fmt=marker, label=name.replace("own", "optimizer's P"))
        for x in (0, 1):
            ax.axvline(x, color="k", lw=0.8)
        ax.set_yticks(range(len(results)), [runs.case for runs in results], fontsize=7)
        ax.set(xlabel="part won of ln κ(H) − ln min κ(DHD) (0: no scaling, 1: best)")
        ax.legend(fontsize=7)


def definite(problem: str, seed: int) -> Workload:
    """One of PROBLEMS. The linear models have raw inputs, where there is something to scale, and start at zero."""
    data, kind = problem.split(", ")
    x, y = workload(f"{data}, MLP", standardized=kind == "network", seed=seed).train
    y = y.reshape(-1, 1).to(x)

    def build() -> nn.Module:
        if kind == "network":
            return nn.Sequential(nn.Linear(x.shape[1], 3), nn.Tanh(), nn.Linear(3, 1))
        model = nn.Linear(x.shape[1], 1)
        for p in model.parameters():
            nn.init.zeros_(p)
        return model

    loss_fn = nn.BCEWithLogitsLoss() if kind == "logistic" else nn.MSELoss()
    return Workload(problem, build, loss_fn, (x, y), (x, y))
