"""How fast gradient descent and heavy ball contract."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.workloads import workload


class Rate(Claim):
    """Near a minimum gradient descent with the best fixed step contracts the error by (κ−1)/(κ+1) a step, heavy ball
    with its best step and momentum by (√κ−1)/(√κ+1); under a preconditioner κ is that of PᵀHP.
    """

    source = "theory 2.1; paper, on preconditioned gradient descent"
    cases = ("random, κ = 100", "random, κ = 100, under P", "diabetes, linear model")
    shown = {
        "descent": "gradient descent: ln of the contraction, measured / predicted",
        "heavy ball": "heavy ball: the same",
        "kappa": "κ(PᵀHP)",
    }

    def holds(self, runs: Runs) -> bool:
        """Measured and predicted logarithm of the contraction a step agree within 10 %, for each seed and method."""
        return all(bool((abs(runs[name] - 1) <= 0.1).all()) for name in ("descent", "heavy ball"))

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        if case.startswith("random"):
            Q = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q
            H = Q * torch.logspace(0, 2, 20, dtype=torch.float64) @ Q.T
        else:
            work = workload("diabetes, MLP", seed=seed)
            H = wc.Hessian(wc.Problem(nn.Linear(10, 1).double(), nn.MSELoss(), work.train)).dense()
        ones = torch.ones(len(H), dtype=H.dtype)
        scale = torch.exp(0.4 * torch.randn_like(ones)) if "P" in case else ones
        low, *_, high = torch.linalg.eigvalsh(scale[:, None] * H * scale).tolist()
        root, start = math.sqrt(high / low), torch.randn_like(ones)
        descent = errors(H, scale, start, lr=2 / (low + high), momentum=0.0, steps=round(10 * root**2))
        lr, momentum = (2 / (low**0.5 + high**0.5)) ** 2, ((root - 1) / (root + 1)) ** 2
        heavy = errors(H, scale, start, lr=lr, momentum=momentum, steps=round(12 * root))
        return {
            "descent": contraction(descent) / math.log((root**2 - 1) / (root**2 + 1)),
            "heavy ball": contraction(heavy) / math.log((root - 1) / (root + 1)),
            "kappa": root**2,
            "descent errors": descent[:200],
            "heavy ball errors": heavy[:200],
        }

    def plot(self, results: Results, ax: Axes) -> None:
        for runs, color in zip(results, ("C0", "C1", "C2"), strict=True):
            for name, style in (("descent", "-"), ("heavy ball", "--")):
                ax.semilogy(runs.figures[0][f"{name} errors"], style, color=color, label=f"{runs.case}: {name}")
        ax.set(xlabel="step", ylabel="distance to the minimum in z, first seed")


def errors(H: Tensor, P: Tensor, start: Tensor, *, lr: float, momentum: float, steps: int) -> list[float]:
    """‖z − z*‖ before each step of torch's SGD on ½pᵀHp with p = Pz, P diagonal, run by `wc.precondition`."""
    p = nn.Parameter(P * start)
    optimizer = torch.optim.SGD([p], lr=lr, momentum=momentum)
    wc.precondition(optimizer, wc.DiagonalPreconditioner([p], [P]))
    distances = []
    for _ in range(steps):
        distances.append(float((p.detach() / P).norm()))
        p.grad = H @ p.detach()
        optimizer.step()
    return distances


def contraction(errors: list[float]) -> float:
    """Mean logarithm of the contraction a step, over the second half of the steps."""
    half = len(errors) // 2
    return math.log(errors[-1] / errors[half]) / (len(errors) - 1 - half)
