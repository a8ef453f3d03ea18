"""Tasks beside the workloads, and workloads changed."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils import parameters_to_vector

import wellcond as wc
from wellcond.evidence.workloads import Workload, workload

ACTIVATIONS = {"tanh": nn.Tanh, "ReLU": nn.ReLU}


def one_layer(name: str, seed: int) -> Workload:
    """A linear model of the targets, or a logistic one where they are classes 0 and 1, without a bias.

    Args:
        name: of the data; what comes after a comma is for the reader.
        seed: of the split.
    """
    work = workload(f"{name.split(',')[0]}, MLP", seed=seed)
    (x, y), loss_fn = work.train, work.loss_fn
    if not y.is_floating_point():
        y, loss_fn = y.double()[:, None], nn.BCEWithLogitsLoss()
    return replace(work, build=lambda: nn.Linear(x.shape[1], 1, bias=False), loss_fn=loss_fn, train=(x, y))


def one_output(problem: str, seed: int) -> Workload:
    """A model with one output and no symmetry of its parameters, whose curvature is positive definite as it is.

    Args:
        problem: data, and "logistic", "least squares" or "network". The first two have raw inputs, where there is
            something to scale, and start at zero.
        seed: of the split.
    """
    data, kind = problem.split(", ")
    x, y = workload(f"{data}, MLP", standardized=kind == "network", seed=seed).train
    y = y.reshape(-1, 1).to(x)

    def build() -> nn.Module:
        if kind == "network":
            return nn.Sequential(nn.Linear(x.shape[1], 3), nn.Tanh(), nn.Linear(3, 1))
        model = nn.Linear(x.shape[1], 1)
        for p in model.parameters():
            nn.init.zeros_(p)
        return model

    loss_fn = nn.BCEWithLogitsLoss() if kind == "logistic" else nn.MSELoss()
    return Workload(problem, build, loss_fn, (x, y), (x, y))


def with_loss(name: str, *, examples: int, seed: int) -> Workload:
    """A workload by "data, architecture, loss" with the loss "cross entropy" or "squared error"."""
    name, _, loss = name.rpartition(", ")
    work = workload(name, examples=examples, seed=seed)
    classifies = isinstance(work.loss_fn, nn.CrossEntropyLoss)
    return with_squared_error(work) if classifies and loss == "squared error" else work


def with_squared_error(work: Workload) -> Workload:
    """A classification as a regression on the classes' indicators."""
    classes = int(work.train[1].max()) + 1
    train, test = ((a, one_hot(b, classes).to(a.dtype)) for a, b in (work.train, work.test))
    return replace(work, loss_fn=nn.MSELoss(), train=train, test=test)


def in_unit_range(work: Workload) -> Workload:
    """With inputs over the largest of the training set's, where tanh has a slope."""
    (x, y), (x_test, y_test) = work.train, work.test
    largest = x.abs().max()
    return replace(work, train=(x / largest, y), test=(x_test / largest, y_test))


def with_activation(model: nn.Module, name: str) -> nn.Sequential:
    """The same layers with one of ACTIVATIONS for ReLU."""
    kind = ACTIVATIONS[name]
    return nn.Sequential(*(kind() if isinstance(layer, nn.ReLU) else layer for layer in model.children()))


def penalized(work: Workload, model: nn.Module, strength: float, squares: Tensor) -> wc.Problem:
    """The training set's loss with strength/2 · Σ p²/squares, (n,): the L2 of z for P², of p for ones."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        penalty = (parameters_to_vector(model.parameters()).square() / squares).sum()
        return work.loss_fn(model(batch[0]), batch[1]) + strength / 2 * penalty

    return wc.Problem(model, loss=loss, data=[work.train])
