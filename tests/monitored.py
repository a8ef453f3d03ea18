"""A training run that draws random numbers wherever it can, for the tests of the monitor."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import wellcond as wc

MODULE_RNG = np.random.default_rng(3)


class Augmented(Dataset):
    """Examples with noise from every kind of generator: the global ones, one of its own, one of its module."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(40, 6, generator=generator)
        self.y = torch.randint(3, (40,), generator=generator)
        self.rng = np.random.default_rng(5)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(6) + random.gauss(0, 1) + float(np.random.randn())
        noise = noise + float(self.rng.normal()) + float(MODULE_RNG.normal())
        return self.x[i] + 0.1 * noise, self.y[i]


def network() -> nn.Sequential:
    """With dropout and batch norm."""
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def trained(
    build: Callable[[nn.Module], torch.optim.Optimizer],
    monitor: dict[str, Any] | None,
    *,
    before: Callable[[nn.Module, torch.optim.Optimizer], object] | None = None,
    after: Callable[[nn.Module, torch.optim.Optimizer], object] | None = None,
    step: Callable[..., Tensor] | None = None,
    prepare: Callable[[nn.Module], object] = lambda model: None,
    epochs: int = 2,
) -> tuple[list[Any], wc.Monitor | None]:
    """All that a run leaves behind, bit by bit, with a monitor or without one.

    Args:
        build: the optimizer of the model.
        monitor: its options; None for none.
        before, after: attach something to the optimizer before and after the monitor.
        step: one step of training, (model, optimizer, x, y, number) → loss; a plain one unless given.
        prepare: changes the model first.
        epochs: of five steps.
    """
    global MODULE_RNG
    MODULE_RNG = np.random.default_rng(3)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    model, data = network(), Augmented()
    prepare(model)
    optimizer, loss_fn = build(model), nn.CrossEntropyLoss()
    loader = DataLoader(data, batch_size=8, shuffle=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    if before:
        before(model, optimizer)
    watching = wc.Monitor(model, loss_fn, loader, optimizer, **monitor) if monitor is not None else None
    if after:
        after(model, optimizer)
    losses, number = [], 0
    for _ in range(epochs):
        for x, y in loader:
            loss = (step or plain_step)(model, optimizer, x, y, number)
            if watching:
                watching.observe(loss)
            scheduler.step()
            number += 1
            losses.append(loss.detach().clone())
    if watching:
        watching.remove()
    state = [*losses, *model.state_dict().values(), *(p.grad for p in model.parameters()), model.training]
    state += [optimizer.state_dict(), torch.get_rng_state(), random.getstate(), np.random.get_state()]
    return [*state, data.rng.bit_generator.state, MODULE_RNG.bit_generator.state], watching


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, number: int) -> Tensor:
    """Zero, backward, step."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def adversarial(monitored: bool) -> tuple[list[Any], list[wc.Monitor]]:
    """All that two networks leave behind that train against each other, each with its optimizer and monitor."""
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    D = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(6, 1))
    noise, real, softplus = torch.randn(16, 3), torch.randn(16, 2), nn.functional.softplus

    def fools(model: nn.Module, z: Tensor) -> Tensor:
        return softplus(-D(model(z))).mean()

    def tells(model: nn.Module, x: Tensor) -> Tensor:
        return softplus(-model(x)).mean() + softplus(model(G(noise).detach())).mean()

    players = [(G, fools, noise, torch.optim.Adam(G.parameters(), lr=1e-2))]
    players += [(D, tells, real, torch.optim.SGD(D.parameters(), lr=1e-2, momentum=0.5))]
    options = {"every": 1, "overhead": None}
    monitors = [wc.Monitor(m, loss=f, data=[x], optimizer=o, **options) for m, f, x, o in players if monitored]
    losses = []
    for _ in range(4):
        for model, loss_of, x, optimizer in players:
            optimizer.zero_grad()
            loss = loss_of(model, x)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().clone())
    state = [*losses, *(x for m, *_ in players for x in (m.state_dict(), m.training, [p.grad for p in m.parameters()]))]
    return [*state, *(o.state_dict() for *_, o in players), torch.get_rng_state()], monitors


def dies_in_a_line(path: str) -> None:
    """Train and be killed, by a signal that nothing can catch, when half a line is written."""
    model, x = nn.Linear(3, 1), torch.randn(9, 3)
    optimizer = torch.optim.Adam(model.parameters())
    monitor = wc.Monitor(model, nn.MSELoss(), (x, x[:, :1]), optimizer, every=1, overhead=None, path=Path(path))
    for step in range(4):
        if step == 3:
            monitor._writer._append = partial(_half, Path(path))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), x[:, :1]).backward()
        optimizer.step()


def _half(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line[: len(line) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def same(a: Any, b: Any) -> bool:
    """Whether two nested structures are equal bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
