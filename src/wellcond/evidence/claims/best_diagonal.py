"""How close adaptive scaling comes to the best diagonal scaling."""

from __future__ import annotations

import math

from torch import nn

import wellcond as wc
from wellcond.evidence.adaptive import ADAPTIVE, stops
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs, crossed
from wellcond.evidence.diagonal_scaling import best_scaling, condition
from wellcond.evidence.plots import row_a_case
from wellcond.evidence.workloads import Workload, workload

PROBLEMS = ("breast cancer, logistic", "wine, least squares", "diabetes, network")


class BestDiagonal(Claim):
    """The scaling of an adaptive optimizer comes near the best diagonal one: κ(PHP) near the least κ(DHD) of all
    diagonal D > 0. (Theory promises row norms the best row scaling, and only Jacobi a factor n of the best DHD.)
    """

    source = "theory 3.2; van der Sluis 1969"
    cases = crossed(PROBLEMS, ADAPTIVE)
    shown = {
        "own": "part won of ln κ(H) − ln min κ(DHD): the optimizer's P",
        "Jacobi": "by Jacobi",
        "row norms": "by row norms",
        "kappa": "κ(H)",
        "best": "least κ(DHD)",
        "certified": "lower bound of it / it",
    }

    def holds(self, runs: Runs) -> bool:
        """κ(PHP) is nearer, in logarithm, to the least κ(DHD) than to κ(H), mean over seeds: P wins more than half of
        the decades that there are to win; and for each seed the least κ(DHD) is certified to within 5 %.
        """
        return bool(runs.mean("own") > 0.5 and (runs["certified"] >= 0.95).all())

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        problem, optimizer = case.split(": ")
        *_, (trained, P) = stops(one_output(problem, seed), optimizer, seed, (300 if quick else 1000,))
        H = wc.GaussNewton(trained).dense()
        scalings = {"own": P.diagonal(), "Jacobi": H.diagonal().rsqrt(), "row norms": H.norm(dim=1).rsqrt()}
        kappa, best = condition(H), best_scaling(H)
        won = {name: math.log(kappa / condition(H, D)) / math.log(kappa / best.kappa) for name, D in scalings.items()}
        return won | {"kappa": kappa, "best": best.kappa, "certified": best.bound / best.kappa}

    def plot(self, results: Results, ax: Axes) -> None:
        row_a_case(ax, results, "own", fmt="o", label="optimizer's P")
        row_a_case(ax, results, "Jacobi", fmt="s", label="Jacobi")
        row_a_case(ax, results, "row norms", fmt="v", label="row norms")
        for x in (0, 1):
            ax.axvline(x, color="k", lw=0.8)
        ax.set(xlabel="part won of ln κ(H) − ln min κ(DHD) (0: no scaling, 1: best)")


def one_output(problem: str, seed: int) -> Workload:
    """A model with one output and no symmetry of its parameters, whose curvature is positive definite as it is.

    Args:
        problem: data, and "logistic", "least squares" or "network". The first two have raw inputs, where there is
            something to scale, and start at zero.
        seed: of the split.
    """
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
    return Workload(build, loss_fn, (x, y), (x, y))
