"""How close adaptive scaling comes to the best diagonal scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import wellcond as wc
from wellcond.evidence.adaptive import ADAPTIVE, squared_diagonal, stops
from wellcond.evidence.claim import Claim, Figures, Runs
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
        "own": "part of ln κ(H)/min κ(DHD) won: the optimizer's P",
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
        ax.set(xlabel="part of ln κ(H) / min κ(DHD) won (0: no scaling, 1: the best diagonal)")
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


class Best(NamedTuple):
    """The best diagonal scaling that was found: D, (n,); κ(DHD); a lower bound of κ(DHD) over all D."""

    scale: Tensor
    kappa: float
    bound: float


def condition(H: Tensor, D: Tensor) -> float:
    """κ(DHD), H ≻ 0."""
    values = torch.linalg.eigvalsh(D[:, None] * H * D)
    return float(values[-1] / values[0])


def best_scaling(H: Tensor) -> Best:
    """Minimize κ(DHD) over D = diag(exp(d)), from Jacobi's D, by a smooth bound that is tightened in turn.

    λ_max ≤ (tr A^q)^{1/q}, the same for A⁻¹, A = DHD. κ(DHD) ≤ κ is quasiconvex in D⁻², so that there are no other
    minima; and its dual bounds it from below: κ(DHD) ≥ tr(YH)/tr(XH) for all D and any X, Y ⪰ 0 with equal diagonals.
    Those of the smooth minimum, made equal by scaling X, certify it.
    """
    d = (-0.5 * H.diagonal().log()).requires_grad_()
    best, bound = Best(d.detach().exp(), condition(H, d.detach().exp()), 1.0), 1.0
    for q in (4.0, 16.0, 64.0, 256.0, 1024.0):
        optimizer = torch.optim.LBFGS([d], max_iter=200, history_size=50, line_search_fn="strong_wolfe")

        def smooth(q: float = q, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            values = torch.linalg.eigvalsh(d.exp()[:, None] * H * d.exp()).log()
            loss = ((q * values).logsumexp(0) + (-q * values).logsumexp(0)) / q
            loss.backward()
            return loss.detach()

        optimizer.step(smooth)
        D = d.detach().exp()
        if condition(H, D) < best.kappa:
            best = Best(D, condition(H, D), 1.0)
        values, U = torch.linalg.eigh(D[:, None] * H * D)
        high, low = ((sign * q * values.log()).softmax(0) for sign in (1, -1))
        Y, X = (D[:, None] * (U * weights @ U.T) * D for weights in (high, low))
        equal = (Y.diagonal() / X.diagonal()).sqrt()
        bound = max(bound, float((Y * H).sum() / (equal[:, None] * X * equal * H).sum()))
    return best._replace(bound=bound)
