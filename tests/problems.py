"""The table of small problems that the tests share: every operator is held against its dense twin on each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wellcond.normalization.rows import blocks, layer_normalized, rows_of_block


@dataclass
class Case:
    """A model, its loss and data, all in float64."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    data: Any
    deterministic: bool = True  # False where the forward pass draws random numbers


class Attention(nn.Module):
    """Two tokens' worth of self-attention by the fused function, which needs its math kernel to be measured."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))


class Recurrent(nn.Module):
    """An LSTM and a readout of its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Tied(nn.Module):
    """An embedding whose weight is also the readout's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embedding(tokens)).mean(1))


def _regression(model: nn.Module, width: int, outputs: int = 1, N: int = 24) -> Case:
    X = torch.randn(N, width, dtype=torch.float64)
    return Case(model.double(), nn.MSELoss(), (X, torch.randn(N, outputs, dtype=torch.float64)))


def _classification(model: nn.Module, shape: tuple[int, ...], classes: int, N: int = 24) -> Case:
    X = torch.randn(N, *shape, dtype=torch.float64)
    return Case(model.double(), nn.CrossEntropyLoss(), (X, torch.randint(classes, (N,))))


def _uneven() -> Case:
    case = _regression(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 3, 2, N=17)
    X, y = case.data
    case.data = [(X[:8], y[:8]), (X[8:15], y[8:15]), (X[15:], y[15:])]
    return case


def _tied() -> Case:
    tokens = torch.randint(6, (15, 5))
    return Case(Tied().double(), nn.CrossEntropyLoss(), (tokens, torch.randint(6, (15,))))


def _dropout() -> Case:
    case = _classification(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3)), (5,), 3)
    case.deterministic = False
    return case


PROBLEMS: dict[str, Callable[[], Case]] = {
    "linear regression": lambda: _regression(nn.Linear(5, 1), 5),
    "softmax regression": lambda: _classification(nn.Linear(5, 3), (5,), 3),
    "tanh MLP": lambda: _regression(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), 4, 2),
    "ReLU MLP": lambda: _classification(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (4,), 3),
    "batch norm": lambda: _classification(
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)), (4,), 3
    ),
    "layer norm": lambda: _classification(
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)), (4,), 3
    ),
    "dropout": _dropout,
    "convolution": lambda: _classification(
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)),
        (2, 4, 4),
        3,
    ),
    "attention": lambda: _classification(Attention(), (3, 4), 3),
    "LSTM": lambda: _regression_of_sequences(),
    "tied weights": _tied,
    "uneven batches": _uneven,
}


def _regression_of_sequences() -> Case:
    X = torch.randn(12, 5, 3, dtype=torch.float64)
    return Case(Recurrent().double(), nn.MSELoss(), (X, torch.randn(12, 2, dtype=torch.float64)))


def make(name: str, seed: int = 0) -> Case:
    """A fresh case, the same for the same seed."""
    torch.manual_seed(seed)
    return PROBLEMS[name]()


def batches_of(case: Case) -> list[Any]:
    """The data as a list of batches."""
    return case.data if isinstance(case.data, list) else [case.data]


def train(case: Case, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Full passes of plain training, one step a batch."""
    for _ in range(steps):
        for x, y in batches_of(case):
            optimizer.zero_grad()
            case.loss_fn(case.model(x), y).backward()
            optimizer.step()


def random_spectrum(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors, float64."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    Q, R = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    Q = Q * R.diagonal().sign()
    A = (Q * values.double()) @ Q.T
    return (A + A.T) / 2


SPECTRA: dict[str, Tensor] = {
    "uniform": torch.linspace(1, 2, 120, dtype=torch.float64),
    "clustered at the top": torch.cat(
        [torch.linspace(0, 1, 100), 10 - 1e-3 * torch.linspace(0, 1, 20).sqrt()]
    ).double(),
    "one tiny gap": torch.cat([torch.linspace(0, 1, 118), torch.tensor([2.0, 2.0 + 1e-6])]).double(),
    "graded over 1e12": torch.logspace(-12, 0, 120, dtype=torch.float64),
    "rank one": torch.cat([torch.zeros(119), torch.tensor([3.0])]).double(),
    "zero": torch.zeros(120, dtype=torch.float64),
    "indefinite": torch.linspace(-3, 2, 120, dtype=torch.float64),
    "repeated": torch.cat([torch.ones(60), 2 * torch.ones(60)]).double(),
    "planted spike": torch.cat([torch.linspace(0, 1, 119), torch.tensor([1.5])]).double(),
    "one by one": torch.tensor([math.pi], dtype=torch.float64),
}


def rows_of(module: nn.Module, x: Tensor, *, normalized: bool = False) -> Iterator[Tensor]:
    """The rows that an input gives a layer, some at a time, as the figures of layers take them up."""
    for block in blocks(module, x):
        yield from rows_of_block(module, layer_normalized(module, block)[0] if normalized else block)
