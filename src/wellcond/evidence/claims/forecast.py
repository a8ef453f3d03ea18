"""The forecast's order of preconditioners, and training's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.optim import SGD, Adam, RMSprop

import wellcond as wc
from wellcond.evidence.claim import Claim, Figures, Runs
from wellcond.evidence.order import pairs_alike
from wellcond.evidence.workloads import Workload, workload

STEPS = 30
WIDTHS = {"diabetes, MLP": 16, "breast cancer, MLP": 16, "digits, convolution": 8}
TRUSTED = 10
"""Steps for which both curves of a pair must be trusted to call the pair trusted."""


class Forecast(Claim):
    """The quadratic model at a point of training, along the gradient, ranks frozen preconditioners as 30 steps of
    gradient descent with them do, and says for how many steps it may be trusted.
    """

    name = "forecast"
    source = "theory 6"
    rule = (
        "over the seeds at least 75 % of the pairs of none, Adam's P, RMSProp's P, Jacobi and Hessian row norms, at "
        "rate 1/λ_max(PᵀHP) each, are in the order of the losses after 30 steps (half-way between a coin and certainty)"
    )
    cases = tuple(f"{name}: after {steps} steps of Adam" for name in WIDTHS for steps in (20, 200, 1000))
    shown = {
        "right": "pairs in the right order",
        "trusted": "pairs with both curves trusted for 10 steps or more",
        "trusted right": "pairs trusted and in the right order",
        "trusted steps": "steps that a curve is trusted for, median of 30",
    }

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        name, point = case.split(": ")
        work = workload(name, width=WIDTHS[name], examples=60 if quick else 400, seed=seed)
        model, P = point_of_training(work, seed, int(point.split()[1]))
        predicted = wc.forecast(work.problem(model), P, steps=STEPS)
        losses = {key: trained(work, model, P[key], predicted[key].learning_rate) for key in P}
        forecasts = {key: float(predicted[key].losses[-1]) for key in P}
        trusted = {key: predicted[key].trusted_steps or 0 for key in P}
        pairs = [
            (pair, pairs_alike(*([x[key] for key in pair] for x in (forecasts, losses)))[0])
            for pair in itertools.combinations(P, 2)
        ]
        sure = [right for (a, b), right in pairs if min(trusted[a], trusted[b]) >= TRUSTED]
        return {
            "right": sum(right for _, right in pairs) / len(pairs),
            "trusted": len(sure) / len(pairs),
            "trusted right": sum(sure) / len(pairs),
            "trusted steps": float(np.median(list(trusted.values()))),
        }

    def holds(self, runs: Runs) -> bool:
        return bool(runs.mean("right") >= 0.75)

    def plot(self, results: Sequence[Runs], ax: Any) -> None:
        names = [runs.case for runs in results]
        ax.barh(
            names,
            [100 * runs.mean("right") for runs in results],
            xerr=[100 * runs.spread("right") for runs in results],
            color="C0",
            label="all pairs",
        )
        ax.axvline(50, color="gray", linewidth=0.8)
        ax.axvline(75, color="gray", linewidth=0.8, linestyle="--")
        ax.invert_yaxis()
        ax.set(xlabel="pairs in the right order, %", xlim=(0, 100))


def point_of_training(work: Workload, seed: int, steps: int) -> tuple[nn.Module, dict[str, wc.Preconditioner | None]]:
    """A network after some steps of Adam on batches, and preconditioners there."""
    model = work.model(seed)
    adam = Adam(model.parameters(), lr=0.001)
    rmsprop = RMSprop(model.parameters(), lr=0.0)  # moves nothing; its second moment is kept
    for x, y in itertools.islice(work.batches(min(64, len(work.train[0])), seed), steps):
        adam.zero_grad()
        work.loss_fn(model(x), y).backward()
        adam.step()
        rmsprop.step()
    problem = work.problem(model)
    return model, {
        "none": None,
        "Adam": wc.preconditioner_of(adam),
        "RMSProp": wc.preconditioner_of(rmsprop),
        "Jacobi": wc.jacobi(wc.GaussNewton(problem)),
        "row norms": wc.row_scaling(wc.Hessian(problem)),
    }


def trained(work: Workload, model: nn.Module, P: wc.Preconditioner | None, rate: float) -> float:
    """The loss after gradient descent on all data with P frozen; the model is put back."""
    start = copy.deepcopy(model.state_dict())
    optimizer = SGD(model.parameters(), lr=rate)
    if P is not None:
        wc.precondition(optimizer, P)
    work.descend(model, optimizer, STEPS)
    loss = work.loss(model).item()
    model.load_state_dict(start)
    return loss if np.isfinite(loss) else np.inf
