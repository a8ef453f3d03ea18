"""The weighted lasso, by scikit-learn."""

from __future__ import annotations

import numpy as np


def lasso(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """argmin_p of the mean loss + Σ weights_i |p_i|, by scikit-learn on the features x_i/weights_i.

    The loss is (y − xp)², or the logistic one where y is 0 or 1.
    """
    from sklearn.linear_model import Lasso, LogisticRegression

    if set(np.unique(y)) == {0.0, 1.0}:
        # Coordinates are drawn in random order: without a state of its own the answer is another one each time.
        solver = LogisticRegression(
            l1_ratio=1.0,
            C=1 / len(y),
            solver="liblinear",
            fit_intercept=False,
            tol=1e-9,
            max_iter=100_000,
            random_state=0,
        )
    else:
        solver = Lasso(alpha=0.5, fit_intercept=False, tol=1e-14, max_iter=100_000)
    return solver.fit(x / weights, y).coef_.reshape(-1) / weights
