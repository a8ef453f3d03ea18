"""A few batches, drawn once from the user's data."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from wellcond.problem.batches import count_examples, each_batch, is_one_batch, until, with_rows
from wellcond.problem.isolation import random_state

LARGE = 1024
"""A single batch of more examples than this is data to draw from, unless a number is asked for."""


def draw_batches(data: Any, *, pairs: bool, examples: int | None, least: int, seed: int) -> list[Any]:
    """Batches of the size that the network is trained in, the same for the same seed, without touching the loader.

    Of a loader over a data set with an order of its own, or shuffled, examples are drawn; a loader with any other
    sampler is read from its start. Of a list, batches are drawn. A single batch is taken as a whole, and only where it
    is larger than what is asked for are examples of it drawn.

    Args:
        data: as for `wellcond.Problem`.
        pairs: whether a batch is an (input, target) pair.
        examples: draw batches until they hold `examples` examples.
        least: the same, of a loader or a list, where `examples` is None.
        seed: of the draw, and of what the data set itself draws.

    Raises:
        TypeError, ValueError: as `wellcond.Problem`, for data of a kind that it does not take.
    """
    rng = random.Random(seed)
    with random_state(seed, torch.device("cpu")):
        if is_one_batch(data, pairs):
            N, most = count_examples(data), examples or LARGE
            return [data if most >= N else with_rows(data, sorted(rng.sample(range(N), most)))]
        wanted = examples or least
        if isinstance(data, DataLoader):
            data = _shuffled(data, wanted, rng)
        elif isinstance(data, list | tuple):
            data = rng.sample(data, len(data))
        return list(until(each_batch(data, pairs=pairs, seed=seed), wanted))


def _shuffled(loader: DataLoader[Any], wanted: int, rng: random.Random) -> DataLoader[Any]:
    """The loader over a few random examples, where its own order says nothing about them."""
    sampler, size = loader.sampler, loader.batch_size
    own = type(loader).__iter__ is not DataLoader.__iter__
    known = type(sampler) in (SequentialSampler, RandomSampler) and type(loader.batch_sampler) is BatchSampler
    if own or not known or size is None or isinstance(loader.dataset, IterableDataset):
        return loader
    total = len(loader.dataset)  # type: ignore[arg-type]
    indices = rng.sample(range(total), min(total, size * -(-wanted // size)))
    return DataLoader(loader.dataset, size, sampler=indices, collate_fn=loader.collate_fn)
