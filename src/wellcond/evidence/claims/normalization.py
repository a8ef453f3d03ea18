"""What input standardization, batch and layer normalization do to conditioning and to the steps that training takes."""

from __future__ import annotations

import numpy as np

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs, crossed
from wellcond.evidence.descents import descents, steps_to
from wellcond.evidence.normalized import normalized
from wellcond.evidence.workloads import workload

DATA = ("wine, MLP", "diabetes, MLP", "digits, MLP", "digits, convolution")
MARKERS = {"standardized inputs": "o", "batch norm": "s", "layer norm": "^"}
RATES = [10 ** (k / 2) for k in range(-12, 4)]
NEVER = 0.1


class Normalization(Claim):
    """On raw inputs, standardizing them, batch- or layer-normalizing what every layer sees, lowers κ(Ĥ) of the layers
    and κ̄ of the Gauss-Newton matrix, and the loss falls in fewer steps.
    """

    name = "normalization"
    source = "theory 5.1 and 5.2; paper, on normalization"
    rule = (
        "for each seed κ(Ĥ), geometric mean of the layers, and κ̄(G) are lower than the plain network's at the start, "
        "and the loss that full-batch gradient descent brings the plain one to is reached in at most half of the "
        "steps, each with its best of learning rates half a decade apart (a smaller gain that grid could explain)"
    )
    cases = crossed(DATA, MARKERS)
    shown = {
        "speed": "steps of the plain network / steps to its loss (0: never)",
        "layers": "κ(Ĥ) / the plain network's, geometric mean of the layers",
        "curvature": "κ̄(G) / the plain network's",
        "loss": "loss at the end / the plain network's",
    }

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        name, kind = case.split(": ")
        width, examples = (8, 60) if quick else (16, 100)
        work = workload(name, width=width, standardized=False, examples=examples, seed=seed)
        networks = [work.model(seed), normalized(work.model(seed), kind, work.train[0])]
        layers, curvature = zip(*(kappas(work.problem(model)) for model in networks), strict=True)
        plain, curves = (descents(work, model, RATES, 40 if quick else 200) for model in networks)
        target = float(plain[:, -1].min())
        return {
            "speed": steps_to(target, plain) / max(1.0, steps_to(target, curves)),
            "layers": layers[1] / layers[0],
            "curvature": curvature[1] / curvature[0],
            "loss": float(curves[:, -1].min()) / target,
        }

    def holds(self, runs: Runs) -> bool:
        return bool((runs["speed"] >= 2).all() and (runs["layers"] < 1).all() and (runs["curvature"] < 1).all())

    def plot(self, results: Results, ax: Axes) -> None:
        for i, runs in enumerate(results):
            style = {"color": f"C{i // len(MARKERS)}", "marker": MARKERS[runs.case.split(": ")[1]], "linestyle": ""}
            ax.loglog(runs["curvature"], np.maximum(runs["speed"], NEVER), label=runs.case, **style)
        ax.axhline(2.0, color="gray", linewidth=0.8)
        ax.set(xlabel="κ̄(G), over the plain network's", ylabel=f"steps, plain / normalized ({NEVER:g}: never)")
        ax.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))


def kappas(problem: wc.Problem) -> tuple[float, float]:
    """κ(Ĥ), geometric mean of the layers, and κ̄ of the Gauss-Newton matrix."""
    layers = [layer.kappa.value for layer in wc.layer_conditioning(problem)]
    return float(np.exp(np.log(layers).mean())), wc.conditioning(wc.GaussNewton(problem)).kappa_mean.value
