"""What L2 does to the spectrum, in both spaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.diagonal_scaling import condition
from wellcond.evidence.plots import key
from wellcond.evidence.workloads import Workload, workload


class L2Spectrum(Claim):
    """L2 of strength τ on the intrinsic parameters lifts every eigenvalue of PᵀHP by τ; on the original ones by between
    τ·min P² and τ·max P², so that with the same mean lift the smallest eigenvalues get less and κ stays larger.
    """

    source = "theory 4.2; paper, on regularization"
    cases = ("digits, MLP", "breast cancer, MLP", "digits, convolution", "characters, transformer")
    shown = {
        "intrinsic": "intrinsic: largest |lift/τ − 1|",
        "smallest": "original, same mean lift: smallest lift/τ",
        "largest": "original: largest lift/τ",
        "kappa": "κ(PᵀGP with the penalty), original / intrinsic",
    }

    def holds(self, runs: Runs) -> bool:
        """For each seed every intrinsic lift is τ within 1e-6 of it, the original space's largest lift is at least
        twice its smallest, and κ of the Gauss-Newton matrix with the penalty is larger in the original space.
        """
        lifted = (runs["intrinsic"] <= 1e-6) & (runs["largest"] >= 2 * runs["smallest"])
        return bool((lifted & (runs["kappa"] > 1)).all())

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        work = workload(case, width=4 if quick else 8, examples=100 if quick else 200, seed=seed)
        model = work.model(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        work.descend(model, optimizer, 100)
        P, problem = wc.preconditioner_of(optimizer), work.problem(model)
        squares, ones = P.diagonal().square(), torch.ones_like(P.diagonal())
        plain = torch.linalg.eigvalsh(wc.Hessian(problem).preconditioned(P).dense())
        strength = 0.01 * float(plain[-1])
        same_mean = strength / float(squares.mean())
        intrinsic = lifts(plain, penalized(work, model, strength, squares), P) / strength
        original = lifts(plain, penalized(work, model, same_mean, ones), P) / strength
        G = wc.GaussNewton(problem).preconditioned(P).dense()
        kept = torch.linspace(0, len(G) - 1, min(len(G), 200)).round().long()
        return {
            "intrinsic": float((intrinsic - 1).abs().max()),
            "smallest": float(original.min()),
            "largest": float(original.max()),
            "kappa": condition(G + same_mean * squares.diag()) / condition(G + strength * ones.diag()),
            "position": (kept / (len(G) - 1)).tolist(),
            "intrinsic lifts": intrinsic[kept].tolist(),
            "original lifts": original[kept].tolist(),
        }

    def plot(self, results: Results, ax: Axes) -> None:
        for i, runs in enumerate(results):
            ax.semilogy(runs["position"][0], runs["original lifts"][0], color=f"C{i}", label=f"{runs.case}: original")
            ax.semilogy(runs["position"][0], runs["intrinsic lifts"][0], "--", color=f"C{i}")
        key(ax, {"intrinsic, all four": "k--"})
        ax.set(xlabel="share of eigenvalues of PᵀHP below, without the penalty", ylabel="lift / τ, first seed")


def lifts(plain: Tensor, problem: wc.Problem, P: wc.Preconditioner) -> Tensor:
    """By how much each eigenvalue of PᵀHP, in ascending order, is above those given, (n,)."""
    return torch.linalg.eigvalsh(wc.Hessian(problem).preconditioned(P).dense()) - plain


def penalized(work: Workload, model: nn.Module, strength: float, squares: Tensor) -> wc.Problem:
    """The training set's loss with strength/2 · Σ p²/squares, (n,): the L2 of z for P², of p for ones."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        penalty = (parameters_to_vector(model.parameters()).square() / squares).sum()
        return work.loss_fn(model(batch[0]), batch[1]) + strength / 2 * penalty

    return wc.Problem(model, loss=loss, data=[work.train])
