"""Data and networks of the experiments: small enough for dense answers, none downloaded."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import wellcond as wc

CONTEXT = 12
"""Characters that the language model sees."""

Build = Callable[..., torch.optim.Optimizer]
"""Makes an optimizer of parameters."""


@dataclass(frozen=True)
class Workload:
    """Data split into training and test, and a network for them.

    Attributes:
        name: data and architecture.
        build: a new network, random.
        loss_fn: mean loss of outputs and targets.
        train, test: inputs and targets.
    """

    name: str
    build: Callable[[], nn.Module]
    loss_fn: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def model(self, seed: int) -> nn.Module:
        """A network with random weights from the seed."""
        torch.manual_seed(seed)
        return self.build().to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """float64, unless built otherwise."""
        x = self.train[0]
        return x.dtype if x.is_floating_point() else torch.float64

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

    def accuracy(self, model: nn.Module, test: bool = True) -> float:
        """Share of right answers; of a regression the share of variance explained."""
        x, y = self.test if test else self.train
        with torch.no_grad():
            out = model(x)
        if isinstance(self.loss_fn, nn.MSELoss):
            return float(1 - (out - y).square().mean() / y.var(correction=0))
        return float((out.argmax(1) == y).double().mean())

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
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: int,
        *,
        batch: int | None = None,
        seed: int = 0,
        penalty: Callable[[], Tensor] | None = None,
    ) -> list[float]:
        """Train, with the whole training set as the batch unless a size is given.

        Returns:
            The loss before each step, without the penalty.
        """
        losses = []
        batches = None if batch is None else self.batches(batch, seed)
        for _ in range(steps):
            x, y = self.train if batches is None else next(batches)
            optimizer.zero_grad()
            loss = self.loss_fn(model(x), y)
            (loss if penalty is None else loss + penalty()).backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        optimizer.zero_grad()
        return losses


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Whatever a training inside does to a network, it is undone."""
    start = copy.deepcopy(model.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(start)


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
    return Workload(name, build, loss_fn, (x[train], y[train]), (x[test], y[test]))


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

    words = re.findall("[a-z]+", " ".join(topics[name] for name in sorted(topics)).lower())
    text = " ".join(words)
    codes = torch.tensor([0 if c == " " else ord(c) - ord("a") + 1 for c in text])
    windows = codes.unfold(0, CONTEXT + 1, 1)
    return windows[:, :-1].contiguous(), windows[:, -1].contiguous()
