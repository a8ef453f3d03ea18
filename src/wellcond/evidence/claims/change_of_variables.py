"""Preconditioned descent in p is descent in z."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD, Adam

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.two_paths import parting
from wellcond.evidence.workloads import workload

STEPS = 50
EPS = 1e-5
"""Of Adam: some gradients are rounding alone (of attention's key bias), which 1e-8 would scale up to steps."""


class ChangeOfVariables(Claim):
    """p ← p − αPPᵀ∇L(p) is gradient descent on z ↦ L(Pz), for any invertible P; and an optimizer under
    `wc.reparameterize`, whatever it does, walks the path that it walks when it is given z ↦ L(Pz) itself.
    """

    name = "change-of-variables"
    source = "theory 1 and 5.4; paper, on preconditioned gradient descent"
    rule = (
        f"over {STEPS} steps p never parts from Pz by more than 1e-10 of the distance travelled, for each seed, for "
        "Adam's own P and for a P that is not diagonal (batch normalization's times Adam's)"
    )
    cases = ("digits, MLP", "digits, convolution", "characters, transformer")
    shown = {
        "descent": "gradient descent, Adam's P: ‖p − Pz‖ / distance travelled, largest",
        "descent, not diagonal": "P not diagonal: the same",
        "heavy ball, not diagonal": "heavy ball in z, P not diagonal: the same",
        "Adam, not diagonal": "Adam in z, P not diagonal: the same",
    }

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
            "descent": parting(work, model, own, partial(SGD, lr=slow), wc.precondition, STEPS),
            "descent, not diagonal": parting(work, model, full, partial(SGD, lr=rate), wc.precondition, STEPS),
            "heavy ball, not diagonal": parting(work, model, full, heavy, wc.reparameterize, STEPS),
            "Adam, not diagonal": parting(work, model, full, in_z, wc.reparameterize, STEPS),
        }
        return {name: max(x) for name, x in curves.items()} | {f"{name}, by step": x for name, x in curves.items()}

    def holds(self, runs: Runs) -> bool:
        return all(bool((runs[name] <= 1e-10).all()) for name in self.shown)

    def plot(self, results: Results, ax: Axes) -> None:
        for runs, color in zip(results, ("C0", "C1", "C2"), strict=True):
            for name, style in zip(self.shown, ("-", "--", "-.", ":"), strict=True):
                curve = runs[f"{name}, by step"].max(0)
                ax.semilogy(range(1, len(curve) + 1), curve, style, color=color, label=f"{runs.case}: {name}")
        ax.axhline(1e-10, color="k", lw=0.8)
        ax.set(xlabel="step", ylabel="‖p − Pz‖ / distance travelled", ylim=(1e-16, 1e-6))
        ax.legend(fontsize=5, ncols=3, loc="upper right")
