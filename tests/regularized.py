"""What the tests of penalties share: a network, a lasso, one penalty of each kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn

import wellcond as wc
from wellcond import penalties as R  # noqa: N812

FORMS = {"single tensor": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def network(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 3)).to(dtype)


def batches(dtype=torch.float64, n=3):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(16, 7, generator=generator).to(dtype), torch.randint(3, (16,), generator=generator))
        for _ in range(n)
    ]


def step(model, optimizer, batch):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()


def train(model, optimizer, steps=20, data=None):
    data = data or batches(next(model.parameters()).dtype)
    for t in range(steps):
        step(model, optimizer, data[t % len(data)])
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


X, y = load_diabetes(return_X_y=True)
X = (X - X.mean(0)) / X.std(0)
y = (y - y.mean()) / y.std()
# A tenth of a ridge: s1 and s2 of this data set are nearly collinear, which would take descent 100,000 steps.
X, y = np.vstack([X, math.sqrt(0.1 * len(y)) * np.eye(10)]), np.concatenate([y, np.zeros(10)])
GRAM, MOMENT = torch.tensor(X.T @ X / len(y)), torch.tensor(X.T @ y / len(y))
TOP = float(torch.linalg.eigvalsh(GRAM)[-1])


def descend(build, penalty, steps=4000, scales=None, **options):
    """w of 1/(2N)·‖y − Xw‖² + R by an optimizer with a regularization."""
    w = nn.Parameter(torch.zeros(1, 10, dtype=torch.float64))
    optimizer = build([w])
    if scales is not None:  # an RMSprop whose v does not move
        optimizer.state[w] = {"step": torch.tensor(1.0), "square_avg": scales.reshape(1, 10) ** -4}
    handle = wc.regularize(optimizer, penalty, **options)
    for _ in range(steps):
        w.grad = (w.detach() @ GRAM) - MOMENT
        optimizer.step()
    return w.detach()[0], handle


SGDS = {
    "plain": lambda p: torch.optim.SGD(p, lr=1 / TOP),
    "heavy ball": lambda p: torch.optim.SGD(p, lr=0.5 / TOP, momentum=0.8),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.5 / TOP, momentum=0.8, dampening=0.3),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.5 / TOP, momentum=0.8, nesterov=True),
}

SCALES = torch.tensor([0.3, 2.0, 1.0, 0.5, 1.5, 0.7, 1.2, 0.4, 0.9, 3.0], dtype=torch.float64)


def frozen(p):
    return torch.optim.RMSprop(p, lr=0.9 / (TOP * 9), alpha=1.0, eps=0.0)


PENALTIES = {
    "L1": R.L1(0.3),
    "L2": R.L2(0.3),
    "ElasticNet": R.ElasticNet(0.3, l1_ratio=0.4),
    "L0": R.L0(0.05),
    "MCP": R.MCP(0.3),
    "SCAD": R.SCAD(0.3),
    "GroupL1 rows": R.GroupL1(0.2),
    "GroupL1 columns": R.GroupL1(0.2, dim=1),
    "SparseGroupL1": R.SparseGroupL1(0.2),
    "NuclearNorm": R.NuclearNorm(0.5),
    "NonNegative": R.NonNegative(),
    "Box": R.Box(-0.5, 0.7),
}


class Transformerish(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm([3, 4])
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.wide_bias = nn.Parameter(torch.zeros(3, 4))


def refused(match, penalty=None, error=ValueError, **options):
    model = options.pop("of", None) or network()
    with pytest.raises(error, match=match):
        wc.regularize(torch.optim.Adam(model.parameters()), penalty or R.L1(0.1), **options)


class Stateless(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"])


def ones(*shape, dtype=torch.float64):
    return nn.Parameter(torch.ones(*shape or (2, 2), dtype=dtype))
