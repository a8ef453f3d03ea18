"""Group penalties under SGD against skglm's group lasso and its own proximal steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skglm import GroupLasso
from skglm.penalties import MCPenalty
from sklearn.datasets import load_breast_cancer
from torch import nn

import wellcond as wc
from wellcond import penalties as R  # noqa: N812

X, y = load_breast_cancer(return_X_y=True)
X, y = (X - X.mean(0)) / X.std(0), y - y.mean()
# Radius, perimeter and area are nearly the same thing: a ridge of 1 % spares descent a million steps.
X, y = np.vstack([X, np.sqrt(0.01 * len(y)) * np.eye(30)]), np.concatenate([y, np.zeros(30)])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("alpha", [0.02, 0.05])
def test_sgd_with_group_l1_reaches_the_group_lasso(alpha, momentum):
    groups = np.arange(30) % 10  # the mean, error and worst value of one measurement
    lists = [list(np.flatnonzero(groups == g)) for g in range(10)]
    model = GroupLasso(lists, alpha=alpha, weights=np.full(10, np.sqrt(3)), fit_intercept=False, tol=1e-12)
    expected = model.fit(X, y).coef_
    gram, moment = torch.tensor(X.T @ X / len(y)), torch.tensor(X.T @ y / len(y))
    w = nn.Parameter(torch.zeros(1, 30, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=1 / float(torch.linalg.eigvalsh(gram)[-1]), momentum=momentum)
    wc.regularize(optimizer, R.GroupL1(alpha, groups=torch.tensor(groups)[None]))
    for _ in range(3_000 if momentum else 20_000):
        w.grad = w.detach() @ gram - moment
        optimizer.step()
    assert np.abs(w.detach().numpy()[0] - expected).max() < 1e-8
    zero = [bool((w.detach()[0][list_] == 0).all()) for list_ in lists]
    assert zero == [bool((expected[list_] == 0).all()) for list_ in lists]
    assert 0 < sum(zero) < 10


@pytest.mark.parametrize("x", [-7.0, -2.9, -0.6, -0.3, 0.0, 0.1, 0.5, 1.3, 3.1])
def test_the_prox_of_mcp_is_skglms(x):
    theirs = MCPenalty(alpha=0.5, gamma=3.0).prox_1d(x, 0.8, 0)
    assert R.MCP(0.5, gamma=3.0).prox(torch.tensor([x], dtype=torch.float64), 0.8).item() == pytest.approx(theirs)
