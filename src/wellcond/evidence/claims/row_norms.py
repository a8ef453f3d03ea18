"""What the second moment of an adaptive optimizer measures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import wellcond as wc
from wellcond.evidence.adaptive import ADAPTIVE, BATCH, DATA, STOPS, small, stops
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs, crossed

SETTINGS = {"full batch": None, f"batches of {BATCH}": BATCH}
TIMES = ("start", "middle", "end")


class RowNorms(Claim):
    """√v of AdaGrad, RMSProp and Adam measures the norm of the Hessian's row, at any time of the training: the row's
    and not only the diagonal entry's, within a parameter's tensor and not only between tensors.
    """

    source = "theory 3.2; paper, on adaptive learning rates"
    cases = crossed(DATA, crossed(ADAPTIVE, SETTINGS, by=", "))
    shown = {
        "start": f"correlation of log √v with the log row norm, step {STOPS[0]}",
        "middle": f"step {STOPS[1]}",
        "end": f"step {STOPS[2]}",
        "within": f"within tensors, step {STOPS[2]}",
        "diagonal": f"with log |H_ii|, step {STOPS[2]}",
    }
    size = (6.4, 4.2)

    def holds(self, runs: Runs) -> bool:
        """After 10, 60 and 300 steps log √v explains at least half of the variance of the log row norm: a correlation
        of 0.71 or more, mean over seeds.
        """
        return all(runs.mean(time) >= 0.71 for time in TIMES)

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        data, rest = case.split(": ")
        optimizer, setting = rest.split(", ")
        figures = {}
        stopped = stops(small(data, quick), optimizer, seed, batch=SETTINGS[setting])
        for time, (problem, P) in zip(TIMES, stopped, strict=True):
            H, root_v = wc.Hessian(problem).dense(), 1 / P.diagonal().square()
            figures[time] = log_correlation(root_v, H.norm(dim=1))
        tensors = torch.cat([torch.full((p.numel(),), i) for i, p in enumerate(problem.parameters)])
        figures["within"] = log_correlation(root_v, H.norm(dim=1), tensors)
        return figures | {"diagonal": log_correlation(root_v, H.diagonal().abs())}

    def plot(self, results: Results, ax: Axes) -> None:
        for i, runs in enumerate(results):
            style = {"color": f"C{i // 6}", "marker": "osv"[i // 2 % 3], "linestyle": ("-", "--")[i % 2]}
            values = np.array([runs[time] for time in TIMES])
            ax.errorbar(STOPS, values.mean(1), values.std(1), label=runs.case, markersize=4, **style)
        ax.axhline(0.71, color="k", lw=0.8)
        ax.set(xscale="log", xlabel="steps of training", ylabel="correlation, log √v with log row norm", ylim=(-0.4, 1))
        ax.legend(fontsize=5, ncols=3)


def log_correlation(x: Tensor, y: Tensor, groups: Tensor | None = None) -> float:
    """Pearson's correlation of the logarithms, of entries that are not zero to rounding; within groups of entries if
    these are given, about the mean of each.
    """
    alive = (x > 1e-7 * x.max()) & (y > 1e-12 * y.max())
    a, b = x[alive].log(), y[alive].log()
    group = torch.zeros_like(a, dtype=torch.long) if groups is None else groups[alive]
    for i in group.unique():
        a[group == i] -= a[group == i].mean()
        b[group == i] -= b[group == i].mean()
    return float(a @ b / (a.norm() * b.norm()))
