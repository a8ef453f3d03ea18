"""What input standardization, batch and layer normalization do to conditioning and to the steps that training takes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs, crossed
from wellcond.evidence.workloads import Workload, workload

DATA = ("wine, MLP", "diabetes, MLP", "digits, MLP", "digits, convolution")
MARKERS = {"standardized inputs": "o", "batch norm": "s", "layer norm": "^"}
RATES = [10 ** (k / 2) for k in range(-12, 4)]
NEVER = 0.1


class Normalization(Claim):
    """On raw inputs, standardizing them, batch- or layer-normalizing what every layer sees, lowers κ(Ĥ) of the layers
    and κ̄ of the Gauss-Newton matrix, and the loss falls in fewer steps.
    """

    source = "theory 5.1 and 5.2; paper, on normalization"
    cases = crossed(DATA, MARKERS)
    shown = {
        "speed": "steps of the plain network / steps to its loss (0: never)",
        "layers": "κ(Ĥ) / the plain network's, geometric mean of the layers",
        "curvature": "κ̄(G) / the plain network's",
        "loss": "loss at the end / the plain network's",
    }

    def holds(self, runs: Runs) -> bool:
        """For each seed κ(Ĥ), geometric mean of the layers, and κ̄(G) are lower than the plain network's at the start,
        and the loss that full-batch gradient descent brings the plain one to is reached in at most half of the steps,
        each with its best of learning rates half a decade apart (a smaller gain that grid could explain).
        """
        return bool((runs["speed"] >= 2).all() and (runs["layers"] < 1).all() and (runs["curvature"] < 1).all())

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

    def plot(self, results: Results, ax: Axes) -> None:
        for i, runs in enumerate(results):
            style = {"color": f"C{i // len(MARKERS)}", "marker": MARKERS[runs.case.split(": ")[1]], "linestyle": ""}
            ax.loglog(runs["curvature"], np.maximum(runs["speed"], NEVER), label=runs.case, **style)
        ax.axhline(2.0, color="gray", linewidth=0.8)
        ax.set(xlabel="κ̄(G), over the plain network's", ylabel=f"steps, plain / normalized ({NEVER:g}: never)")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def kappas(problem: wc.Problem) -> tuple[float, float]:
    """κ(Ĥ), geometric mean of the layers, and κ̄ of the Gauss-Newton matrix."""
    layers = [layer.kappa.value for layer in wc.layer_conditioning(problem)]
    return float(np.exp(np.log(layers).mean())), wc.conditioning(wc.GaussNewton(problem)).kappa_mean.value


def normalized(model: nn.Module, kind: str, x: Tensor) -> nn.Sequential:
    """A sequence of layers with a normalization in front of the first layer that has weights, or of each.

    But for layer norm, and where zeros are padded, it computes what the given one does: its weights are the z of p = Pz
    (theory, section 5.2).

    Args:
        model: layers in sequence.
        kind: "standardized inputs" in front of the first; "batch norm" or "layer norm" in front of each.
        x: the data.
    """
    found: list[nn.Module] = []
    fronts = 1 if kind == "standardized inputs" else math.inf
    for layer in copy.deepcopy(model).children():
        after = layer(x).detach()
        if isinstance(layer, nn.Linear | nn.Conv2d) and fronts > 0:
            fronts -= 1
            standardize = wc.standardize((x, x))
            if kind == "layer norm":
                found.append(nn.GroupNorm(1, x.shape[1], affine=False))
            else:
                kinds = nn.BatchNorm1d if x.ndim == 2 else nn.BatchNorm2d
                batch_norm = kinds(x.shape[1], affine=False, track_running_stats=False)
                found.append(standardize if kind == "standardized inputs" else batch_norm)
                mean, scale = standardize.mean, standardize.scale
                layer = wc.Standardize(-mean / scale, 1 / scale, dim=standardize.dim).folded(layer)
        found.append(layer)
        x = after
    return nn.Sequential(*found)


def descents(work: Workload, model: nn.Module, rates: Sequence[float], steps: int) -> Tensor:
    """The lowest loss so far after each step of full-batch gradient descent at each rate, (rates, steps + 1)."""
    x, y = work.train
    descend = vmap(grad_and_value(lambda p: work.loss_fn(functional_call(model, p, (x,)), y)))
    points = {name: p.detach().expand(len(rates), *p.shape) for name, p in model.named_parameters()}
    each, losses = torch.tensor(rates, dtype=torch.float64), []
    for _ in range(steps + 1):
        gradients, loss = descend(points)
        losses.append(loss.nan_to_num(math.inf))
        points = {name: p - each.view(-1, *(1,) * (p.ndim - 1)) * gradients[name] for name, p in points.items()}
    return torch.stack(losses, 1).cummin(1).values


def steps_to(loss: float, curves: Tensor) -> float:
    """The first step after which one of some falling curves, (rates, steps), is at a loss; infinite if none ever is.

    >>> steps_to(2.0, torch.tensor([[5.0, 4.0, 3.0], [5.0, 3.0, 2.0]]))
    2.0
    """
    reached = (curves <= loss).any(0)
    return float(reached.to(torch.uint8).argmax()) if bool(reached.any()) else math.inf
