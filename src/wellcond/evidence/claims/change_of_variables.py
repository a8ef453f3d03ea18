"""Preconditioned descent in p is descent in z."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import wellcond as wc
from wellcond.evidence.claim import Claim, Figures, Runs
from wellcond.evidence.workloads import Workload, workload

STEPS = 50
EPS = 1e-5
"""Of Adam: some gradients are rounding alone (of attention's key bias), which 1e-8 would scale up to steps."""
Build = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


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
        adam = torch.optim.Adam(model.parameters(), lr=0.003, eps=EPS)
        work.descend(model, adam, 20)
        normalizing.remove()
        own = wc.preconditioner_of(adam)
        figures: dict[str, list[float]] = {}
        for P, kind in ((own, ""), (normalizing @ own, ", not diagonal")):
            H = wc.Hessian(work.problem(model)).preconditioned(P)
            # Far from the edge, for the curvature may rise: an unstable path blows rounding up, and proves nothing.
            lr = 0.05 / wc.eigenvalues(H, seed=seed).largest().value
            descent, heavy = partial(torch.optim.SGD, lr=lr), partial(torch.optim.SGD, lr=lr / 10, momentum=0.9)
            in_z = partial(torch.optim.Adam, lr=3e-4, eps=EPS)
            figures["descent" + kind] = parting(work, model, P, descent, wc.precondition)
            figures["heavy ball" + kind] = parting(work, model, P, heavy, wc.reparameterize)
            figures["Adam" + kind] = parting(work, model, P, in_z, wc.reparameterize)
        curves = {f"{name}, by step": curve for name, curve in figures.items()}
        return {name: max(curve) for name, curve in figures.items()} | curves

    def holds(self, runs: Runs) -> bool:
        return all(bool((runs[name] <= 1e-10).all()) for name in self.shown)

    def plot(self, results: Sequence[Runs], ax: Any) -> None:
        for runs, color in zip(results, ("C0", "C1", "C2"), strict=True):
            for name, style in zip(self.shown, ("-", "--", "-.", ":"), strict=True):
                curve = runs[f"{name}, by step"].max(0)
                ax.semilogy(range(1, len(curve) + 1), curve, style, color=color, label=f"{runs.case}: {name}")
        ax.axhline(1e-10, color="k", lw=0.8)
        ax.set(xlabel="step", ylabel="‖p − Pz‖ / distance travelled", ylim=(1e-16, 1e-6))
        ax.legend(fontsize=5, ncols=3, loc="upper right")


def parting(work: Workload, model: nn.Module, P: wc.Preconditioner, build: Build, attach: Any) -> list[float]:
    """‖p − Pz‖ over the distance travelled after each step: p by our attachment, z by the same optimizer over z, whose
    gradient torch takes of z ↦ L(Pz).
    """
    twin = deepcopy(model)
    names, parameters = zip(*twin.named_parameters(), strict=True)
    own = P.over(list(model.parameters()), names)  # in the model's order
    z = [nn.Parameter(x) for x in own.invert([p.detach().clone() for p in parameters])]
    in_z, in_p = build(z), build(model.parameters())
    start = torch.cat([p.detach().flatten() for p in parameters])
    handle = attach(in_p, own)
    x, y = work.train
    curve = []
    for _ in range(STEPS):
        work.descend(model, in_p, 1)
        in_z.zero_grad()
        work.loss_fn(torch.func.functional_call(twin, dict(zip(names, own.apply(z), strict=True)), (x,)), y).backward()
        in_z.step()
        p = torch.cat([q.detach().flatten() for q in model.parameters()])
        Pz = torch.cat([q.detach().flatten() for q in own.apply(z)])
        curve.append(float((p - Pz).norm() / (Pz - start).norm()))
    handle.remove()
    with torch.no_grad():
        for p, q in zip(model.parameters(), parameters, strict=True):
            p.copy_(q)
    return curve
