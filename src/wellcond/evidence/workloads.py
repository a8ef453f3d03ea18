"""Data and networks of the experiments: small enough for dense answers, none downloaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, repeat

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import wellcond as wc

CONTEXT = 12
"""Characters that the language model sees."""

Network = Callable[[Tensor], Tensor]

Build = Callable[..., Optimizer]
"""Makes an optimizer of parameters."""


@dataclass(frozen=True)
class Workload:
    """Data split into training and test, and a network for them.

    Attributes:
        build: a new network, random.
        loss_fn: mean loss of outputs and targets.
        train, test: inputs and targets.
    """

    build: Callable[[], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def model(self, seed: int) -> nn.Module:
        """A network in float64 with random weights from the seed."""
        torch.manual_seed(seed)
        return self.build().double()

    def problem(self, model: nn.Module) -> wc.Problem:
        """The whole training set as one batch."""
        return wc.Problem(model, self.loss_fn, self.train)

    def loss(self, model: nn.Module, test: bool = False) -> Tensor:
        """Mean loss on the training (or test) set."""
        x, y = self.test if test else self.train
        return self.loss_fn(model(x), y)

    def value(self, model: nn.Module, test: bool = False) -> float:
        """The loss as a number; infinite where it is not finite."""
        with torch.no_grad():
            loss = float(self.loss(model, test))
        return loss if math.isfinite(loss) else math.inf

    def accuracy(self, model: nn.Module) -> float:
        """Share of the test set that is classified rightly."""
        x, y = self.test
        with torch.no_grad():
            return float((model(x).argmax(1) == y).double().mean())

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random batches of the training set, epoch after epoch, without end."""
        x, y = self.train
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(x), generator=generator)
            for chosen in order.split(size):
                if len(chosen) == size:
                    yield x[chosen], y[chosen]

    def descend(
        self, model: Network, optimizer: Optimizer, steps: int, *, batch: int | None = None, seed: int = 0
    ) -> list[float]:
        """Train, with the whole training set as the batch unless a size is given.

        Returns:
            The loss before each step.
        """
        losses = []
        for x, y in islice(repeat(self.train) if batch is None else self.batches(batch, seed), steps):
            optimizer.zero_grad()
            loss = self.loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        optimizer.zero_grad()
        return losses


class CharacterTransformer(nn.Module):
    """The next character after CONTEXT of them: one causal encoder layer, the last position is read out."""

    def __init__(self, characters: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(0.1 * torch.randn(CONTEXT, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.out = nn.Linear(width, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, CONTEXT) of tokens → (batch, characters)."""
        return self.out(self.block(self.embedding(tokens) + self.position)[:, -1])


def workload(name: str, *, width: int = 16, examples: int = 400, standardized: bool = True, seed: int = 0) -> Workload:
    """A workload of WORKLOADS by its name.

    Args:
        name: "data, architecture".
        width: of the hidden layers.
        examples: of the training set at most; those left over are the test set, up to 1,000 of them.
        standardized: whether inputs have mean zero and variance one, over the training set.
        seed: of the split.

    Raises:
        ValueError: if there is no such workload.
    """
    if name not in WORKLOADS:
        raise ValueError(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}")
    data, architecture = name.split(", ")
    x, y = _data(data)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    kept = min(examples, 2 * len(x) // 3)
    train, test = order[:kept], order[kept : kept + 1000]
    if standardized and x.is_floating_point():
        mean, scale = x[train].mean(0), x[train].std(0, correction=0)
        x = (x - mean) / torch.where(scale > 0, scale, 1.0)
    regression = y.is_floating_point()
    if regression:
        y = (y - y[train].mean(0)) / y[train].std(0, correction=0)
    outputs = 1 if regression else int(y.max()) + 1
    loss_fn = nn.MSELoss() if regression else nn.CrossEntropyLoss()
    build = _ARCHITECTURES[architecture](x, outputs, width)
    return Workload(build, loss_fn, (x[train], y[train]), (x[test], y[test]))


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


def _mlp(x: Tensor, outputs: int, width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def _convolution(x: Tensor, outputs: int, width: int) -> Callable[[], nn.Module]:
    channels = width // 2
    return lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * channels, outputs),
    )


def _transformer(x: Tensor, outputs: int, width: int) -> Callable[[], nn.Module]:
    return lambda: CharacterTransformer(outputs, width // 2)


_ARCHITECTURES = {"MLP": _mlp, "convolution": _convolution, "transformer": _transformer}

WORKLOADS = (
    "digits, MLP",
    "digits, convolution",
    "breast cancer, MLP",
    "wine, MLP",
    "diabetes, MLP",
    "characters, transformer",
)
"""Every workload: data of scikit-learn, and text that ships with Python."""


@cache
def _data(name: str) -> tuple[Tensor, Tensor]:
    if name == "characters":
        return _characters()
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ModuleNotFoundError("the evidence needs scikit-learn: pip install 'wellcond[evidence]'") from error
    load = getattr(datasets, f"load_{name.replace(' ', '_')}")
    x, y = load(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float64)
    return x, torch.tensor(y, dtype=torch.float64)[:, None] if name == "diabetes" else torch.tensor(y)


def _characters() -> tuple[Tensor, Tensor]:
    """Letters and spaces of Python's own help texts: each CONTEXT of them, and the next one."""
    from pydoc_data.topics import topics

    text = " ".join(re.findall("[a-z]+", " ".join(topics[name] for name in sorted(topics)).lower()))
    codes = torch.tensor([0 if c == " " else ord(c) - ord("a") + 1 for c in text])
    windows = codes.unfold(0, CONTEXT + 1, 1)
    return windows[:, :-1].contiguous(), windows[:, -1].contiguous()
