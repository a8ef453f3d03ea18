"""Small training runs on scikit-learn's data, for the tests of findings and the corpus."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc
from wellcond.examination.measurements import OptimizerFacts
from wellcond.examination.subject import Settings, Subject
from wellcond.trials import loss_of


@cache
def _loaded(name: str) -> tuple[Tensor, Tensor]:
    X, y = getattr(datasets, f"load_{name.replace(' ', '_')}")(return_X_y=True)
    return torch.tensor(X, dtype=torch.float32), torch.tensor(y)


def data(name: str, *, standardized: bool = True, most: int = 400) -> tuple[Tensor, Tensor, nn.Module]:
    """Inputs, targets and loss of "digits", "wine", "breast cancer", "diabetes" or "iris", of so many examples."""
    X, y = _loaded(name)
    keep = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))[:most]
    loss_fn: nn.Module = nn.CrossEntropyLoss()
    if name == "diabetes":
        y, keep, loss_fn = ((y - y.mean()) / y.std()).float()[:, None], torch.arange(len(X))[:most], nn.MSELoss()
    X, y = X[keep], y[keep]
    if standardized:
        spread = X.std(0)
        X = (X - X.mean(0)) / torch.where(spread > 0, spread, 1.0)
    return X, y, loss_fn


def mlp(inputs: int, outputs: int, *, depth: int = 2, width: int = 16, act: Callable[[], nn.Module] = nn.ReLU) -> Any:
    """Hidden layers "0", "2", …, and the last one."""
    widths = [inputs, *[width] * depth]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class Convolution(nn.Module):
    """Two convolutions along the features, and a readout of the channels' means and of the first features."""

    def __init__(self, inputs: int, outputs: int, channels: int = 8):
        super().__init__()
        self.conv1 = nn.Conv1d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool1d(4)
        self.readout = nn.Linear(4 * channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x[:, None]))
        return self.readout(self.pool(torch.relu(self.conv2(x))).flatten(1))


class Transformer(nn.Module):
    """One attention layer over four or more tokens, each a piece of the features."""

    def __init__(self, inputs: int, outputs: int, width: int = 8):
        super().__init__()
        self.piece = max(1, inputs // 8)
        tokens = inputs // self.piece
        self.embed = nn.Linear(self.piece, width)
        self.position = nn.Parameter(0.1 * torch.randn(tokens, width))
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.readout = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x[:, : len(self.position) * self.piece].unflatten(1, (-1, self.piece)))
        return self.readout(self.layer(tokens + self.position).mean(1))


class Residual(nn.Module):
    """Two residual blocks with layer norm."""

    def __init__(self, inputs: int, outputs: int, width: int = 12):
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(2)
        )
        self.readout = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.readout(x)


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "MLP": mlp,
    "convolution": Convolution,
    "transformer": Transformer,
    "residual": Residual,
}


def train(run: wc.TrainingRun, epochs: int) -> wc.TrainingRun:
    """Plain training."""
    for _ in range(epochs):
        for batch in run.data:
            run.optimizer.zero_grad()
            loss_of(run, batch).backward()
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


def copied(run: wc.TrainingRun) -> wc.TrainingRun:
    """The same with a model and an optimizer of its own."""
    model, optimizer = copy.deepcopy((run.model, run.optimizer))
    return wc.TrainingRun(model, run.loss_fn, run.data, optimizer, run.loss)


def followed(remedy: str, run: wc.TrainingRun) -> wc.TrainingRun:
    """The code that a finding advises, run on a copy as docs/findings.md says that it can be."""
    run = copied(run)
    names = {"model": run.model, "optimizer": run.optimizer, "data": run.data, "torch": torch, "nn": nn, "wc": wc}
    names |= {"loss_fn": run.loss_fn} if run.loss is None else {"loss": run.loss}
    exec(remedy, names)
    return wc.TrainingRun(names["model"], run.loss_fn, names["data"], names["optimizer"], run.loss)


def found(run: wc.TrainingRun, find: Callable, *, quick: bool = False) -> tuple[wc.results.Finding | None, Subject]:
    """What one finding says about a run, with the layers measured but no curvature."""
    settings = Settings(quick=quick)
    subject = Subject.of(run, settings)
    return find(measured(subject, settings), subject), subject


def measured(subject: Subject, settings: Settings) -> wc.examination.Measurements:
    """All that the findings about layers look at."""
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
