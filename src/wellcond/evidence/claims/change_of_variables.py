"""Preconditioned descent in p is descent in z."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, Adam

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.workloads import Build, Workload, workload

STEPS = 50
EPS = 1e-5
"""Of Adam: some gradients are rounding alone (of attention's key bias), which 1e-8 would scale up to steps."""


class ChangeOfVariables(Claim):
    """p ← p − αPPᵀ∇L(p) is gradient descent on z ↦ L(Pz), for any invertible P; and an optimizer under
    `wc.reparameterize`, whatever it does, walks the path that it walks when it is given z ↦ L(Pz) itself.
    """

    source = "theory 1 and 5.4; paper, on preconditioned gradient descent"
    cases = ("digits, MLP", "digits, convolution", "characters, transformer")
    shown = {
        "descent": "gradient descent, Adam's P: ‖p − Pz‖ / distance travelled, largest",
        "descent, not diagonal": "P not diagonal: the same",
        "heavy ball, not diagonal": "heavy ball in z, P not diagonal: the same",
        "Adam, not diagonal": "Adam in z, P not diagonal: the same",
    }

    def holds(self, runs: Runs) -> bool:
        """Over 50 steps p never parts from Pz by more than 1e-10 of the distance travelled, for each seed, for Adam's
        own P and for a P that is not diagonal (batch normalization's times Adam's).
        """
        return all(bool((runs[name] <= 1e-10).all()) for name in self.shown)

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        work = workload(case, width=8, examples=100)
        model = work.model(seed)
        normalizing = wc.BatchNormPreconditioner(model, momentum=0.5)
        adam = Adam(model.parameters(), lr=0.003, eps=EPS)
        work.descend(model, adam, 20)
        normalizing.remove()
        own, H = wc.preconditioner_of(adam), wc.Hessian(work.problem(model))
        full = normalizing @ own
        # Far from the edge, for the curvature may rise: an unstable path blows rounding up, and proves nothing.
        slow, rate = (0.05 / wc.eigenvalues(H.preconditioned(P), seed=seed).largest().value for P in (own, full))
        heavy, in_z = partial(SGD, lr=rate / 10, momentum=0.9), partial(Adam, lr=3e-4, eps=EPS)
        curves = {
            "descent": parting(work, model, own, partial(SGD, lr=slow), wc.precondition),
            "descent, not diagonal": parting(work, model, full, partial(SGD, lr=rate), wc.precondition),
            "heavy ball, not diagonal": parting(work, model, full, heavy, wc.reparameterize),
            "Adam, not diagonal": parting(work, model, full, in_z, wc.reparameterize),
        }
        return {name: max(x) for name, x in curves.items()} | {f"{name}, by step": x for name, x in curves.items()}

    def plot(self, results: Results, ax: Axes) -> None:
        for runs, color in zip(results, ("C0", "C1", "C2"), strict=True):
            for name, style in zip(self.shown, ("-", "--", "-.", ":"), strict=True):
                curve = runs[f"{name}, by step"].max(0)
                ax.semilogy(range(1, len(curve) + 1), curve, style, color=color, label=f"{runs.case}: {name}")
        ax.axhline(1e-10, color="k", lw=0.8)
        ax.set(xlabel="step", ylabel="‖p − Pz‖ / distance travelled", ylim=(1e-16, 1e-6))
        ax.legend(fontsize=5, ncols=3, loc="upper right")


def parting(work: Workload, model: nn.Module, P: wc.Preconditioner, build: Build, attach: Any) -> list[float]:
    """‖p − Pz‖ over the distance travelled after each full-batch step; the model is put back.

    Args:
        work: data and loss.
        model: where both paths start.
        P: over the model's parameters.
        build: the optimizer, of p and of z.
        attach: our attachment of P to the optimizer of p, `wc.precondition` or `wc.reparameterize`. The optimizer of z
            is torch's alone, and torch takes the gradient of z ↦ L(Pz).
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    P = P.over(parameters, names)  # in the model's order
    start = parameters_to_vector(parameters).detach()
    z = [nn.Parameter(x) for x in P.invert([p.detach().clone() for p in parameters])]

    def at_Pz(x: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, P.apply(z), strict=True)), (x,))

    optimizer, of_z = build(parameters), build(z)
    handle = attach(optimizer, P)
    curve = []
    for _ in range(STEPS):
        work.descend(at_Pz, of_z, 1)
        work.descend(model, optimizer, 1)
        p, Pz = (parameters_to_vector(x).detach() for x in (parameters, P.apply(z)))
        curve.append(float((p - Pz).norm() / (Pz - start).norm()))
    handle.remove()
    vector_to_parameters(start, parameters)
    return curve
