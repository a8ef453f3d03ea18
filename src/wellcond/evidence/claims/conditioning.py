"""Whether the adaptive optimizers' P conditions."""

from __future__ import annotations

import math

import wellcond as wc
from wellcond.evidence.adaptive import ADAPTIVE, BATCH, DATA, STOPS, small, stops
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs, crossed

TIMES = (" at start", " at middle", "")
"""What a figure's name says of each of STOPS: of the last one nothing."""


class Conditioning(Claim):
    """The P of AdaGrad, RMSProp and Adam conditions: κ of PᵀHP is far under κ of H, all through the training, about as
    far as Jacobi's scaling brings it.
    """

    source = "theory 2.2 and 3.2; paper, on adaptive learning rates"
    cases = crossed(DATA, ADAPTIVE)
    shown = {
        "effective at start": f"κ_eff, P / none, log₁₀, step {STOPS[0]}",
        "effective at middle": f"step {STOPS[1]}",
        "effective": f"step {STOPS[2]}",
        "effective, Jacobi": "Jacobi / none there",
        "mean": "κ̄ of PᵀHP / H there, log₁₀",
        "mean, Jacobi": "Jacobi's",
        "half": "κ(0.5), the same",
        "half, Jacobi": "Jacobi's",
        "most": "κ(0.9), the same",
        "most, Jacobi": "Jacobi's",
    }
    size = (6.4, 4.2)

    def holds(self, runs: Runs) -> bool:
        """After 10, 60 and 300 steps, κ_eff (what gradient descent feels) of PᵀGP is at most half of that of G,
        Gauss-Newton, in the geometric mean over seeds: half the steps (of each κ_eff its lower bound, the only one that
        rounding leaves where a network has directions without curvature).
        """
        return all(runs.mean(f"effective{time}") <= -math.log10(2) for time in TIMES)

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        data, optimizer = case.split(": ")
        figures: dict[str, float] = {}
        for time, (problem, P) in zip(TIMES, stops(small(data, quick), optimizer, seed), strict=True):
            H = wc.Hessian(problem)
            with problem:
                none = kappas(wc.conditioning(H))
                own = kappas(wc.conditioning(H.preconditioned(P)))
                jacobi = kappas(wc.conditioning(H.preconditioned(wc.jacobi(wc.GaussNewton(problem)))))
            for name in none:
                figures[name + time] = math.log10(own[name]) - math.log10(none[name])
                figures[f"{name}{time}, Jacobi"] = math.log10(jacobi[name]) - math.log10(none[name])
        return figures

    def plot(self, results: Results, ax: Axes) -> None:
        for i, runs in enumerate(results):
            for which, style in (("", "-"), (", Jacobi", ":")):
                values = [10 ** runs.mean(f"effective{time}{which}") for time in TIMES]
                color, marker = f"C{i // 3}", "osv"[i % 3]
                ax.loglog(STOPS, values, style, color=color, marker=marker, markersize=4, label=runs.case + which)
        ax.axhline(0.5, color="k", lw=0.8)
        ax.set(xlabel=f"steps of training, batches of {BATCH}", ylabel="κ_eff of PᵀGP / κ_eff of G", ylim=(0.01, 100))
        ax.legend(fontsize=5, ncols=3, loc="upper right")


def kappas(c: wc.results.Conditioning) -> dict[str, float]:
    """κ_eff, κ̄, κ(0.5), κ(0.9). Of κ_eff the lower bound, over the directions that have curvature beyond rounding: of a
    transformer's parameters a third has none, and what rounding leaves of the gradient there bounds nothing.
    """
    of_spectrum = {"mean": c.kappa_mean, "half": c.kappa(0.5), "most": c.kappa(0.9)}
    return {"effective": c.kappa_effective.low} | {name: kappa.value for name, kappa in of_spectrum.items()}
