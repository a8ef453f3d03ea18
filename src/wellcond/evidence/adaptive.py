"""Training by the adaptive optimizers, stopped on its way, of networks small enough for a dense Hessian."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch

import wellcond as wc
from wellcond.evidence.workloads import Build, Workload, workload

ADAPTIVE: Mapping[str, Build] = {
    "AdaGrad": partial(torch.optim.Adagrad, lr=0.03),
    "RMSProp": partial(torch.optim.RMSprop, lr=0.003),
    "Adam": partial(torch.optim.Adam, lr=0.003),
}
"""The optimizers, with rates that bring all three to about the same loss in as many steps."""

BATCH = 32
STOPS = (10, 60, 300)
"""The steps at which a training is looked at: start, middle, end."""

DATA: Mapping[str, int] = {"digits, MLP": 400, "diabetes, MLP": 400, "characters, transformer": 96}
"""What is trained on, and how many examples of it."""


def small(name: str, quick: bool = False) -> Workload:
    """A workload so small that its dense Hessian takes a second or two; with a third of the examples if quick."""
    return workload(name, width=8, examples=DATA[name] // (3 if quick else 1))


def stops(
    work: Workload, optimizer: str, seed: int, steps: Iterable[int] = STOPS, batch: int | None = BATCH
) -> Iterator[tuple[wc.Problem, wc.Preconditioner]]:
    """Train, and stop after these many steps: the problem there, and the P that the optimizer's last step used.

    Args:
        work: data and network.
        optimizer: of ADAPTIVE.
        seed: of the weights and the batches.
        steps: where to stop, rising.
        batch: examples per step; the whole training set for None.
    """
    model, done = work.model(seed), 0
    made = ADAPTIVE[optimizer](model.parameters())
    for step in steps:
        work.descend(model, made, step - done, batch=batch, seed=1000 * seed + step)
        done = step
        yield work.problem(model), wc.preconditioner_of(made)
