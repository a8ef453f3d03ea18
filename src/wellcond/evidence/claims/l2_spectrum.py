"""What L2 does to the spectrum, in both spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import wellcond as wc
from wellcond.evidence.claim import Claim, Figures, Runs
from wellcond.evidence.workloads import Workload, workload


class L2Spectrum(Claim):
    """L2 of strength τ on the intrinsic parameters lifts every eigenvalue of PᵀHP by τ; on the original ones by between
    τ·min P² and τ·max P², so that with the same mean lift the smallest eigenvalues get less and κ stays larger.
    """

    name = "l2-spectrum"
    source = "theory 4.2; paper, on regularization"
    rule = (
        "for each seed every intrinsic lift is τ within 1e-6 of it, the original space's largest lift is at least "
        "twice its smallest, and κ of the Gauss-Newton matrix with the penalty is larger in the original space"
    )
    cases = ("digits, MLP", "breast cancer, MLP", "digits, convolution", "characters, transformer")
    shown = {
        "intrinsic": "intrinsic: largest |lift/τ − 1|",
        "smallest": "original, same mean lift: smallest lift/τ",
        "largest": "original: largest lift/τ",
        "kappa": "κ(PᵀGP with the penalty), original / intrinsic",
    }

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        work = workload(case, width=4 if quick else 8, examples=100 if quick else 200, seed=seed)
        model = work.model(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        work.descend(model, optimizer, 100)
        P = wc.preconditioner_of(optimizer)
        problem = work.problem(model)
        squares = P.gram([torch.ones_like(p) for p in problem.parameters])
        plain = torch.linalg.eigvalsh(wc.Hessian(problem).preconditioned(P).dense())
        strength = 0.01 * float(plain[-1])
        same_mean = strength / float(torch.cat([s.flatten() for s in squares]).mean())
        intrinsic = lifts(plain, penalized(work, model, strength, squares), P)
        original = lifts(plain, penalized(work, model, same_mean, [torch.ones_like(s) for s in squares]), P)
        G = wc.GaussNewton(problem).preconditioned(P).dense()
        diagonal = same_mean * torch.cat([s.flatten() for s in squares])
        kept = torch.linspace(0, len(plain) - 1, min(len(plain), 200)).round().long()
        return {
            "intrinsic": float((intrinsic / strength - 1).abs().max()),
            "smallest": float(original.min()) / strength,
            "largest": float(original.max()) / strength,
            "kappa": kappa(G + torch.diag(diagonal)) / kappa(G + strength * torch.eye(len(G), dtype=G.dtype)),
            "position": (kept / (len(plain) - 1)).tolist(),
            "intrinsic lifts": (intrinsic[kept] / strength).tolist(),
            "original lifts": (original[kept] / strength).tolist(),
        }

    def holds(self, runs: Runs) -> bool:
        lifted = (runs["intrinsic"] <= 1e-6) & (runs["largest"] >= 2 * runs["smallest"])
        return bool((lifted & (runs["kappa"] > 1)).all())

    def plot(self, results: Sequence[Runs], ax: Any) -> None:
        for runs, color in zip(results, ("C0", "C1", "C2", "C3"), strict=True):
            ax.semilogy(runs["position"][0], runs["original lifts"][0], color=color, label=f"{runs.case}: original")
            ax.semilogy(runs["position"][0], runs["intrinsic lifts"][0], "--", color=color)
        ax.plot([], [], "k--", label="intrinsic, all four")
        ax.set(xlabel="share of eigenvalues of PᵀHP below, without the penalty", ylabel="lift / τ, first seed")
        ax.legend(fontsize=7)


def penalized(work: Workload, model: nn.Module, strength: float, squares: Sequence[Tensor]) -> wc.Problem:
    """The training set's loss with strength/2 · Σ p²/squares: the L2 of z for P², of p for ones."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        parts = [(p.square() / s).sum() for p, s in zip(model.parameters(), squares, strict=True)]
        return work.loss_fn(model(batch[0]), batch[1]) + strength / 2 * torch.stack(parts).sum()

    return wc.Problem(model, loss=loss, data=[work.train])


def lifts(plain: Tensor, problem: wc.Problem, P: wc.Preconditioner) -> Tensor:
    """By how much each eigenvalue of PᵀHP, in ascending order, is above those given, (n,)."""
    return torch.linalg.eigvalsh(wc.Hessian(problem).preconditioned(P).dense()) - plain


def kappa(matrix: Tensor) -> float:
    """The largest over the smallest eigenvalue of a positive definite matrix."""
    values = torch.linalg.eigvalsh(matrix)
    return float(values[-1] / values[0])
