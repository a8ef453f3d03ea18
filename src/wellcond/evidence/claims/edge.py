"""Full-batch training hovers at the edge of stability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn
from torch.nn.functional import one_hot
from torch.optim import SGD, Adam, Optimizer, RMSprop

import wellcond as wc
from wellcond.evidence.claim import Claim, Figures, Runs
from wellcond.evidence.workloads import Workload, workload


@dataclass(frozen=True)
class Method:
    """An optimizer, and learning rates at which training on each of DATA comes to the edge, if at any."""

    build: Callable[..., Optimizer]
    rates: Mapping[str, float]
    settings: Mapping[str, float] = field(default_factory=dict)


MEASUREMENTS, QUICK_MEASUREMENTS = 20, 7
DATA = ("diabetes, MLP, squared error", "digits, convolution, squared error", "digits, MLP, cross entropy")
METHODS = {
    "gradient descent, 2/α": Method(SGD, dict(zip(DATA, (0.2, 1.6, 0.4), strict=True))),
    "heavy ball, (2+2β)/α": Method(SGD, dict(zip(DATA, (0.1, 1.6, 0.4), strict=True)), {"momentum": 0.9}),
    "RMSProp, 2/α": Method(RMSprop, dict(zip(DATA, (0.001, 0.001, 0.001), strict=True))),
    "Adam, 38/α": Method(Adam, dict(zip(DATA, (0.01, 0.02, 0.01), strict=True))),
}


class Edge(Claim):
    """Full-batch training raises λ_max(PᵀHP) until it hovers at the bound of stability: 2/α for gradient descent and
    RMSProp, (2+2β)/α for heavy ball, 38/α for Adam with β₁ = 0.9.
    """

    name = "edge"
    source = "theory 2.3; Cohen et al., arXiv 2103.00065 and 2207.14484"
    rule = (
        "for each seed the edge ratio, α·λ_max(PᵀHP) over the bound, is between 0.8 and 1.25 on average over the last "
        "third of training; the learning rates are part of the setting, smaller ones come there later"
    )
    cases = tuple(f"{method}: {data}" for data in DATA for method in METHODS)
    shown = {
        "late ratio": "edge ratio, mean of the last third",
        "highest ratio": "the highest",
        "loss": "loss at the end",
    }

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        method, data, loss = case_of(case)
        work = workload(data, examples=200, seed=seed)
        if loss == "squared error" and not isinstance(work.loss_fn, nn.MSELoss):
            work = with_squared_error(work)
        model = work.model(seed)
        optimizer = method.build(model.parameters(), lr=method.rates[f"{data}, {loss}"], **method.settings)
        problem = work.problem(model)
        ratios = []
        for _ in range(QUICK_MEASUREMENTS if quick else MEASUREMENTS):
            losses = work.descend(model, optimizer, 50 if quick else 25)
            ratios.append(wc.edge_ratio(problem, optimizer, max_products=15 if quick else 25).ratio.value)
        return {"late ratio": late_mean(ratios), "highest ratio": max(ratios), "loss": losses[-1], "ratios": ratios}

    def holds(self, runs: Runs) -> bool:
        return bool((abs(np.log(runs["late ratio"])) <= np.log(1.25)).all())

    def plot(self, results: Sequence[Runs], ax: Any) -> None:
        colors = {method: f"C{i}" for i, method in enumerate(METHODS)}
        styles = dict(zip(DATA, ("-", "--", ":"), strict=True))
        for runs in results:
            method, data = runs.case.split(": ")
            count = runs["ratios"].shape[1]
            steps = np.arange(1, count + 1) * (50 if count == QUICK_MEASUREMENTS else 25)
            ax.semilogy(steps, np.median(runs["ratios"], axis=0), styles[data], color=colors[method])
        for method, color in colors.items():
            ax.plot([], [], color=color, label=method)
        for data, style in styles.items():
            ax.plot([], [], style, color="gray", label=data)
        ax.axhline(1.0, color="gray", linewidth=0.8)
        ax.set(xlabel="step", ylabel="edge ratio, median of seeds", ylim=(1e-2, 3))
        ax.legend(fontsize=6, loc="lower left")


def case_of(case: str) -> tuple[Method, str, str]:
    """Optimizer, workload and loss of a case."""
    method, data = case.split(": ")
    name, _, loss = data.rpartition(", ")
    return METHODS[method], name, loss


def with_squared_error(work: Workload) -> Workload:
    """A classification as a regression on the classes' indicators."""
    classes = int(work.train[1].max()) + 1
    train, test = ((a, one_hot(b, classes).to(a.dtype)) for a, b in (work.train, work.test))
    return replace(work, loss_fn=nn.MSELoss(), train=train, test=test)


def late_mean(ratios: Sequence[float]) -> float:
    """Mean of the last third.

    >>> late_mean([9.0, 9.0, 9.0, 9.0, 1.0, 2.0])
    1.5
    """
    return float(np.mean(ratios[-(len(ratios) // 3) :]))
