"""Small training runs on scikit-learn's data, for the tests of findings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc
from wellcond.examination.subject import Settings, Subject


def data(name: str, *, standardized: bool = True, most: int = 400) -> tuple[Tensor, Tensor, nn.Module]:
    """Inputs, targets and loss of "digits", "wine", "breast_cancer", "diabetes" or "iris"."""
    X, y = (torch.tensor(a) for a in getattr(datasets, f"load_{name}")(return_X_y=True))
    X = X.float()
    if standardized:
        X = wc.standardize(X)(X)
    if name == "diabetes":
        return X[:most], ((y - y.mean()) / y.std()).float()[:most, None], nn.MSELoss()
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))[:most]
    return X[order], y[order], nn.CrossEntropyLoss()


def mlp(inputs: int, outputs: int, *, width: int = 16, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Two hidden layers: layers "0", "2" and "4"."""
    return nn.Sequential(nn.Linear(inputs, width), act(), nn.Linear(width, width), act(), nn.Linear(width, outputs))


class Convolutions(nn.Module):
    """Two convolutions along the features."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 6, 3, padding=1), nn.Conv1d(6, 8, 3, padding=1)
        self.out = nn.Linear(8 * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.second(torch.relu(self.first(x[:, None])))).flatten(1))


class Transformer(nn.Module):
    """A token a feature, and one encoder layer."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.embed, self.place = nn.Linear(1, 8), nn.Parameter(0.5 * torch.randn(inputs, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.out = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.embed(x[..., None]) + self.place).mean(1))


def train(run: wc.TrainingRun, epochs: int) -> wc.TrainingRun:
    """Plain training."""
    for _ in range(epochs):
        for x, y in run.data:
            run.optimizer.zero_grad()
            run.loss_fn(run.model(x), y).backward()
            run.optimizer.step()
    return run


def trained(
    model: nn.Module,
    given: tuple[Tensor, Tensor, nn.Module],
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    lr: float = 3e-3,
    epochs: int = 8,
    batch_size: int = 50,
) -> wc.TrainingRun:
    """Some epochs on (X, y, loss)."""
    X, y, loss_fn = given
    loader = DataLoader(TensorDataset(X, y), batch_size, shuffle=True, generator=torch.Generator().manual_seed(0))
    return train(wc.TrainingRun(model, loss_fn, loader, optimizer(model.parameters(), lr=lr)), epochs)


def found(run: wc.TrainingRun, find: Callable, *, quick: bool = False) -> tuple[wc.Finding | None, Subject]:
    """What one finding says about a run, with the layers measured but no curvature."""
    settings = Settings(quick=quick)
    subject = Subject.of(run, settings)
    return find(measured(subject, settings), subject), subject


def measured(subject: Subject, settings: Settings) -> wc.examination.Measurements:
    """All that the findings about layers look at."""
    from wellcond.examination.measurements import OptimizerFacts

    problem = subject.problem
    problem.gradient()
    try:
        layers = wc.layer_conditioning(problem)
    except ValueError:
        layers = []
    facts = OptimizerFacts(type(subject.run.optimizer).__name__, [{"lr": subject.run.optimizer.param_groups[0]["lr"]}])
    return wc.examination.Measurements(
        model=type(problem.model).__name__,
        parameters=problem.size,
        examples=problem.examples,
        batches=len(problem.batches),
        loss=problem.loss(),
        gradient_norm=1.0,
        dtype="float64",
        settings=settings,
        optimizer=facts,
        preconditioned=False,
        layers=layers,
        unreached=problem.unreached,
    )
