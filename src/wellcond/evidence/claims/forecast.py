"""The forecast's order of preconditioners, and training's."""

from __future__ import annotations

import math

import numpy as np
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, Adam, RMSprop

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs, pairs_alike
from wellcond.evidence.workloads import Workload, workload

STEPS = 30
WIDTHS = {"diabetes, MLP": 16, "breast cancer, MLP": 16, "digits, convolution": 8}
TRUSTED = 10
"""Steps for which both curves of a pair must be trusted to call the pair trusted."""


class Forecast(Claim):
    """The quadratic model at a point of training, along the gradient, ranks frozen preconditioners as 30 steps of
    gradient descent with them do, and says for how many steps it may be trusted.
    """

    source = "theory 6"
    cases = tuple(f"{name}: after {steps} steps of Adam" for name in WIDTHS for steps in (20, 200, 1000))
    shown = {
        "right": "pairs in the right order",
        "trusted": "pairs with both curves trusted for 10 steps or more",
        "trusted right": "pairs trusted and in the right order",
        "trusted steps": "steps that a curve is trusted for, median of 30",
    }

    def holds(self, runs: Runs) -> bool:
        """Over the seeds at least 75 % of the pairs of none, Adam's P, RMSProp's P, Jacobi and Hessian row norms, at
        rate 1/λ_max(PᵀHP) each, are in the order of the losses after 30 steps (half-way between a coin and certainty).
        """
        return bool(runs.mean("right") >= 0.75)

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        name, point = case.split(": ")
        work = workload(name, width=WIDTHS[name], examples=60 if quick else 400, seed=seed)
        model, P = point_of_training(work, seed, int(point.split()[1]))
        curves = wc.forecast(work.problem(model), P, steps=STEPS)
        forecasts = [float(curves[name].losses[-1]) for name in P]
        losses = [trained(work, model, P[name], curves[name].learning_rate) for name in P]
        trusted = [curves[name].trusted_steps for name in P]
        ends = list(zip(forecasts, losses, strict=True))
        sure = [end for end, steps in zip(ends, trusted, strict=True) if steps >= TRUSTED]
        pairs = math.comb(len(P), 2)
        return {
            "right": pairs_alike(ends)[0] / pairs,
            "trusted": math.comb(len(sure), 2) / pairs,
            "trusted right": pairs_alike(sure)[0] / pairs,
            "trusted steps": float(np.median(trusted)),
        }

    def plot(self, results: Results, ax: Axes) -> None:
        means, spreads = ([100 * f(runs, "right") for runs in results] for f in (Runs.mean, Runs.spread))
        ax.barh([runs.case for runs in results], means, xerr=spreads, color="C0")
        for x, style in ((50, "-"), (75, "--")):
            ax.axvline(x, color="gray", linewidth=0.8, linestyle=style)
        ax.invert_yaxis()
        ax.set(xlabel="pairs in the right order, %", xlim=(0, 100))


def point_of_training(work: Workload, seed: int, steps: int) -> tuple[nn.Module, dict[str, wc.Preconditioner | None]]:
    """A network after some steps of Adam on batches, and preconditioners there."""
    model = work.model(seed)
    adam = Adam(model.parameters(), lr=0.001)
    rmsprop = RMSprop(model.parameters(), lr=0.0)  # moves nothing; its second moment is kept
    adam.register_step_post_hook(lambda *_: rmsprop.step())
    work.descend(model, adam, steps, batch=min(64, len(work.train[0])), seed=seed)
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
    start = parameters_to_vector(model.parameters()).detach()
    optimizer = SGD(model.parameters(), lr=rate)
    if P is not None:
        wc.precondition(optimizer, P)
    work.descend(model, optimizer, STEPS)
    loss = work.value(model)
    vector_to_parameters(start, model.parameters())
    return loss
