"""Intrinsic L1 under a fixed preconditioner."""

from __future__ import annotations

import numpy as np
import torch

import wellcond as wc
from wellcond.evidence.claim import Axes, Claim, Figures, Results, Runs
from wellcond.evidence.workloads import one_layer


class WeightedLasso(Claim):
    """While P stands still, L1 on the intrinsic parameters is a weighted lasso: training comes to rest at the minimum
    of L(p) + τ Σ |p_i|/P_ii, not at that of a lasso of equal weights.
    """

    source = "theory 4.3 and 4.6; paper, on regularization"
    cases = ("diabetes, linear model", "breast cancer, logistic model")
    shown = {
        "distance": "relative distance from the weighted lasso, largest over strengths",
        "differing": "weights that are zero in one of the two only",
        "other": "relative distance from the lasso of equal weights, smallest over strengths",
        "zeros": "share of zeros, mean over strengths",
    }

    def holds(self, runs: Runs) -> bool:
        """For each seed and strength the weights are within 1e-5 (relative) of scikit-learn's solution of the weighted
        lasso, with the same zeros, and at least 1e-3 from that of the lasso whose weights are all the mean of 1/P_ii.
        """
        return bool(((runs["distance"] <= 1e-5) & (runs["differing"] == 0) & (runs["other"] >= 1e-3)).all())

    def measure(self, case: str, seed: int, quick: bool) -> Figures:
        work = one_layer(case, seed)
        model = work.model(seed)
        (weight,) = model.parameters()
        optimizer = torch.optim.RMSprop([weight], lr=1e-3, momentum=0.97)
        work.descend(model, optimizer, 200, batch=32, seed=seed)
        optimizer.param_groups[0]["alpha"] = 1.0  # from here on v, and with it P, stands still
        torch.nn.init.zeros_(weight)
        P, problem = wc.preconditioner_of(optimizer), work.problem(model)
        curvature = wc.Hessian(problem).preconditioned(P).dense()
        optimizer.param_groups[0]["lr"] = 2 / float(torch.linalg.eigvalsh(curvature)[-1])
        strongest = float((P.diagonal() * problem.gradient()).abs().max())  # from here on all weights are zero
        penalty = wc.regularize(optimizer, wc.penalties.L1(strongest))
        (x, y), inverse = (t.numpy() for t in work.train), 1 / P.diagonal().numpy()
        ours, weighted, equal = [], [], []
        for share in (0.5, 0.2) if quick else (0.5, 0.2, 0.1):
            penalty.strength = share * strongest
            work.descend(model, optimizer, 2000)
            ours.append(weight.detach()[0].numpy().copy())
            weighted.append(lasso(x, y[:, 0], penalty.strength * inverse))
            equal.append(lasso(x, y[:, 0], penalty.strength * np.full_like(inverse, inverse.mean())))
        return {
            "distance": max(map(relative_distance, ours, weighted)),
            "differing": float(np.sum((np.array(ours) == 0) != (np.array(weighted) == 0))),
            "other": min(map(relative_distance, ours, equal)),
            "zeros": float(np.mean(np.array(ours) == 0)),
            "ours": np.concatenate(ours).tolist(),
            "weighted": np.concatenate(weighted).tolist(),
            "equal": np.concatenate(equal).tolist(),
        }

    def plot(self, results: Results, ax: Axes) -> None:
        for runs, color in zip(results, ("C0", "C1"), strict=True):
            ours = runs["ours"][0]
            ax.plot(runs["equal"][0], ours, "x", color=color, alpha=0.5, label=f"{runs.case}: equal weights")
            ax.plot(runs["weighted"][0], ours, "o", color=color, ms=3, label=f"{runs.case}: weights 1/P")
        ax.axline((0, 0), slope=1, color="gray", lw=0.5)
        ax.set(xlabel="weight, scikit-learn's lasso (1 / standard deviation of the input)", ylabel="weight, training")


def relative_distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖/‖b‖."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def lasso(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """argmin_p of the mean loss + Σ weights_i |p_i|, by scikit-learn on the features x_i/weights_i.

    The loss is (y − xp)², or the logistic one where y is 0 or 1.
    """
    from sklearn.linear_model import Lasso, LogisticRegression

    exact = {"fit_intercept": False, "max_iter": 100_000}
    if set(np.unique(y)) == {0.0, 1.0}:
        # Coordinates are drawn in random order: without a state of its own the answer is another one each time.
        solver = LogisticRegression(l1_ratio=1.0, C=1 / len(y), solver="liblinear", tol=1e-9, random_state=0, **exact)
    else:
        solver = Lasso(alpha=0.5, tol=1e-14, **exact)
    return solver.fit(x / weights, y).coef_.reshape(-1) / weights
