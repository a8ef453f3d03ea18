"""The networks that the benchmarks measure, each after some training on data that can be learned.

A network at its random start has a Hessian of its own kind: what is measured here is what a user would look at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Trained:
    """A trained network with its loss and the batches that it was trained on."""

    model: nn.Module
    loss_fn: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    optimizer: torch.optim.Optimizer

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def examples(self) -> int:
        """Number of examples in all batches."""
        return sum(len(x) for x, _ in self.batches)

    def gradient(self) -> list[Tensor]:
        """The gradient of the whole loss as a training loop takes it: what every cost is counted in."""
        self.optimizer.zero_grad()
        for x, y in self.batches:
            loss = self.loss_fn(self.model(x), y)
            (loss if len(x) == self.examples else loss * (len(x) / self.examples)).backward()
        return [p.grad for p in self.model.parameters() if p.grad is not None]


Network = tuple[nn.Module, tuple[int, ...]]
"""A network and the shape of one example."""


def mlp() -> Network:
    """784-512-512-10, ReLU."""
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return model, (784,)


def convolution() -> Network:
    """Two convolutions with pooling on 32×32 images, and a readout."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    model.extend([nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 10)])
    return model, (3, 32, 32)


def transformer() -> Network:
    """Three layers of width 128 on 64 tokens."""
    return Transformer(width=128, layers=3), (64, 128)


def mlp_of(size: int) -> Network:
    """64-w-w-10 with about so many parameters."""
    w = round((math.sqrt(77**2 + 4 * (size - 10)) - 77) / 2)
    return nn.Sequential(nn.Linear(64, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 10)), (64,)


def transformer_of(size: int) -> Network:
    """Two layers on 16 tokens, with about so many parameters."""
    width = 4 * max(1, round(math.sqrt(size / 24) / 4))
    return Transformer(width, layers=2), (16, width)


BATCH = {mlp: 512, convolution: 128, transformer: 16}
"""The three networks on which products are timed, and their batch sizes."""


class Transformer(nn.Module):
    """Encoder layers without dropout, and a readout of the mean token."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x).mean(1))


def trained(
    build: Callable[[], Network], batch: int, *, batches: int = 1, steps: int = 10, device: str = "cpu"
) -> Trained:
    """A network after `steps` steps of Adam, one batch after the other; the same for the same arguments.

    Few steps: where the loss is nearly zero float32 resolves no curvature, in any library.
    """
    torch.manual_seed(0)
    model, shape = build()
    model.to(device)
    data = [labelled(torch.randn(batch, *shape, device=device)) for _ in range(batches)]
    optimizer, loss_fn = torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    train(model, loss_fn, optimizer, itertools.islice(itertools.cycle(data), steps))
    optimizer.zero_grad()
    return Trained(model, loss_fn, data, optimizer)


def train(
    model: nn.Module, loss_fn: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Sequence[Tensor]]
) -> None:
    """A step on each batch; the last gradient stays."""
    for x, y in batches:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()


def labelled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs with labels that depend on them, and on noise."""
    first = x.flatten(1)[:, :10]
    return x, (first + 0.3 * torch.randn_like(first)).argmax(1)
