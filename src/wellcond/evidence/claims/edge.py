"""Full-batch training hovers at the edge of stability."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from torch import nn
from torch.nn.functional import one_hot
from torch.optim import SGD, Adam, RMSprop

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.plots import key
from wellcond.evidence.workloads import Build, Workload, workload

STEPS = {20: 25, 7: 50}  # between measurements, by the number of them in a run
DATA = ("diabetes, MLP, squared error", "digits, convolution, squared error", "digits, MLP, cross entropy")
METHODS: dict[str, tuple[Build, tuple[float, ...]]] = {
    "gradient descent, 2/α": (SGD, (0.2, 1.6, 0.4)),
    "heavy ball, (2+2β)/α": (partial(SGD, momentum=0.9), (0.1, 1.6, 0.4)),
    "RMSProp, 2/α": (RMSprop, (0.001, 0.001, 0.001)),
    "Adam, 38/α": (Adam, (0.01, 0.02, 0.01)),
}
"""Optimizers with learning rates at which training on each of DATA comes to the edge, if at any."""


class Edge(Claim):
    """Full-batch training raises λ_max(PᵀHP) until it hovers at the bound of stability: 2/α for gradient descent and
    RMSProp, (2+2β)/α for heavy ball, 38/α for Adam with β₁ = 0.9.
    """

    source = "theory 2.3; Cohen et al., arXiv 2103.00065 and 2207.14484"
    cases = tuple(f"{method}: {data}" for data in DATA for method in METHODS)
    shown = {
        "late ratio": "edge ratio, mean of the last third",
        "highest ratio": "the highest",
        "loss": "loss at the end",
    }

    def holds(self, runs: Runs) -> bool:
        """For each seed the edge ratio, α·λ_max(PᵀHP) over the bound, is between 0.8 and 1.25 on average over the last
        third of training; the learning rates are part of the setting, smaller ones come there later.
        """
        return bool((abs(np.log(runs["late ratio"])) <= np.log(1.25)).all())

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        method, data = case.split(": ")
        work = with_loss(data, examples=200, seed=seed)
        model, (build, rates) = work.model(seed), METHODS[method]
        optimizer = build(model.parameters(), lr=rates[DATA.index(data)])
        problem, ratios, measurements = work.problem(model), [], 7 if quick else 20
        for _ in range(measurements):
            losses = work.descend(model, optimizer, STEPS[measurements])
            ratios.append(wc.edge_ratio(problem, optimizer, max_products=15 if quick else 25).ratio.value)
        late = float(np.mean(ratios[-(measurements // 3) :]))
        return {"late ratio": late, "highest ratio": max(ratios), "loss": losses[-1], "ratios": ratios}

    def plot(self, results: Results, ax: Axes) -> None:
        colors = {method: f"C{i}" for i, method in enumerate(METHODS)}
        styles = dict(zip(DATA, ("-", "--", ":"), strict=True))
        for runs in results:
            method, data = runs.case.split(": ")
            ratios = np.median(runs["ratios"], axis=0)
            steps = STEPS[len(ratios)] * np.arange(1, len(ratios) + 1)
            ax.semilogy(steps, ratios, styles[data], color=colors[method])
        key(ax, colors | {data: f"k{style}" for data, style in styles.items()})
        ax.axhline(1.0, color="gray", linewidth=0.8)
        ax.set(xlabel="step", ylabel="edge ratio, median of seeds", ylim=(1e-2, 3))
        ax.legend(loc="lower left")


def with_loss(name: str, *, examples: int, seed: int) -> Workload:
    """A workload by "data, architecture, loss" with the loss "cross entropy" or "squared error".

    A classification with the squared error is a regression on the classes' indicators.
    """
    name, _, loss = name.rpartition(", ")
    work = workload(name, examples=examples, seed=seed)
    if loss != "squared error" or isinstance(work.loss_fn, nn.MSELoss):
        return work
    x, y = work.train
    return replace(work, loss_fn=nn.MSELoss(), train=(x, one_hot(y).to(x.dtype)))
