"""Reading the user's data once, without touching their loader."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from wellcond.problem.isolation import RANDOM, states_kept
from wellcond.problem.reachable import generators_of

DEFAULT_EXAMPLES = 8192
"""A loader over more examples than this is read up to here, unless the number of batches is given."""


def read_batches(data: Any, *, pairs: bool, batches: int | None, seed: int) -> list[Any]:
    """All batches to measure on, in memory.

    Args:
        data: one batch, a list of batches, or a DataLoader.
        pairs: whether a batch is an (input, target) pair.
        batches: how many to read at most; None reads everything that is given as batches, and a loader up to
            `DEFAULT_EXAMPLES` examples.
        seed: of the loader's shuffling.

    Raises:
        TypeError, ValueError: where the data is not of that kind, or empty.
    """
    if batches is not None and batches < 1:
        raise ValueError(f"got batches={batches}; at least one batch is needed")
    stream = each_batch(data, pairs=pairs, seed=seed)
    if batches is None and isinstance(data, DataLoader):
        stream = until(stream, DEFAULT_EXAMPLES)
    found = list(itertools.islice(stream, batches))
    if not found:
        raise ValueError("data is empty: there is no batch to measure on")
    for i, batch in enumerate(found):
        if pairs and not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise TypeError(
                f"batch {i} is a {_describe(batch)}, not an (input, target) pair; for any other batch give "
                "loss=callable(model, batch) instead of loss_fn"
            )
        if count_examples(batch) == 0:
            raise ValueError(f"batch {i} has no examples")
    return found


def each_batch(data: Any, *, pairs: bool, seed: int) -> Iterator[Any]:
    """The batches of data, one after the other and none kept; a loader's by its rules, without iterating it.

    Args:
        data: as for `read_batches`.
        pairs: as there.
        seed: as there.

    Raises:
        TypeError, ValueError: for data of another kind, at the call.
    """
    if data is None:
        raise ValueError("data is missing; give one (input, target) batch, a list of batches, or a DataLoader")
    if isinstance(data, DataLoader):
        if type(data).__iter__ is not DataLoader.__iter__:
            raise TypeError(f"{type(data).__name__} makes its batches in an __iter__ of its own; give a list of them")
        return _from_loader(data, seed)
    if isinstance(data, Iterator):
        raise ValueError(
            "data is a one-shot generator and would be empty on the second pass; give a list of batches or a DataLoader"
        )
    if is_one_batch(data, pairs):
        return iter([data])
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return iter(data)
    raise TypeError(
        f"data is a {type(data).__name__}; give one {'(input, target) ' if pairs else ''}batch, a list of batches, "
        "or a torch DataLoader"
    )


def count_examples(batch: Any) -> int:
    """The length of the first dimension of a batch's first tensor."""
    for leaf in tensors_of(batch):
        return leaf.shape[0] if leaf.ndim else 1
    raise TypeError(f"a batch holds no tensor but is a {_describe(batch)}; give tensors, or tuples or dicts of them")


def until(stream: Iterator[Any], examples: int) -> Iterator[Any]:
    """Batches until they hold this number of examples."""
    seen = 0
    for batch in stream:
        yield batch
        seen += count_examples(batch)
        if seen >= examples:
            return


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """The tensors of a nested batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from tensors_of(value)


def move(batch: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """A copy of a nested batch on a device, its floating-point tensors in a dtype if one is given.

    A copy in any case: a network or loss that works in place must not change the user's data.
    """
    return with_tensors(batch, lambda x: x.to(device, dtype if x.is_floating_point() else None, copy=True))


def with_tensors(batch: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nested batch with every tensor changed, in the order of `tensors_of`."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        changed = {key: with_tensors(value, change) for key, value in batch.items()}
        try:
            like = copy.copy(batch)
            like.update(changed)  # type: ignore[attr-defined]
            return like
        except AttributeError:
            return changed
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(with_tensors(value, change) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(with_tensors(value, change) for value in batch)
    return batch


def with_rows(batch: Any, rows: slice | list[int]) -> Any:
    """Some examples of a batch; the batch itself where not all its tensors have one row per example."""
    N = count_examples(batch)
    if any(x.ndim == 0 or x.shape[0] != N for x in tensors_of(batch)):
        return batch
    return with_tensors(batch, lambda x: x[rows])


def signature(batch: Any) -> str:
    """The same for two batches that take one way through a network: shapes, strides, dtypes, and all that is no
    tensor."""

    def layout(x: Tensor) -> Any:
        dense = x.layout == torch.strided and not x.is_nested
        return tuple(x.shape), x.stride() if dense else x.layout, x.dtype

    return repr(with_tensors(batch, layout))


def is_one_batch(data: Any, pairs: bool) -> bool:
    """Whether data is one batch and not several."""
    if isinstance(data, Tensor | Mapping):
        return not pairs
    if isinstance(data, tuple):
        return not pairs or not all(isinstance(b, tuple | list) and len(b) == 2 for b in data) or _is_pair(data)
    # A loader's collate function gives a pair as a list of two tensors.
    return isinstance(data, list) and pairs and _is_pair(data)


def _is_pair(data: Sequence[Any]) -> bool:
    return len(data) == 2 and all(isinstance(x, Tensor) for x in data)


def _describe(batch: Any) -> str:
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {len(batch)}"
    return type(batch).__name__


def _from_loader(loader: DataLoader[Any], seed: int) -> Iterator[Any]:
    """Batches as the loader would make them, from its data set and copies of its samplers: iterating the loader
    itself inside a training loop can end its epoch, and moves its generator."""
    with states_kept(generators_of(loader.dataset, loader.collate_fn)):
        yield from map(loader.collate_fn, _not_collated(loader, seed))


def _not_collated(loader: DataLoader[Any], seed: int) -> Iterator[Any]:
    """What its collate function makes batches of."""
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        stream = iter(dataset)
        if isinstance(dataset, Iterator) or iter(dataset) is stream:
            raise ValueError(
                f"{type(dataset).__name__} is a stream that can be read once, and training would miss what is looked "
                "at; give a list of batches"
            )
        if loader.batch_size is None:
            yield from stream
            return
        while chunk := list(itertools.islice(stream, loader.batch_size)):
            if len(chunk) == loader.batch_size or not loader.drop_last:
                yield chunk
        return
    indices = _copy_of_sampler(loader.batch_sampler or loader.sampler, seed)
    if loader.batch_sampler is None:
        yield from (dataset[i] for i in indices)
        return
    fetch = getattr(dataset, "__getitems__", None) or (lambda chunk: [dataset[i] for i in chunk])
    yield from map(fetch, indices)


def _copy_of_sampler(sampler: Any, seed: int) -> Any:
    """A shallow copy, with seeded generators and mutable state of its own."""
    twin = copy.copy(sampler)
    if isinstance(getattr(twin, "sampler", None), torch.utils.data.Sampler):
        twin.sampler = _copy_of_sampler(twin.sampler, seed)
    for name, value in vars(twin).items():
        if isinstance(value, torch.Generator):
            setattr(twin, name, torch.Generator(device=value.device).manual_seed(seed))
        elif isinstance(value, (*RANDOM, list, dict, set)):
            setattr(twin, name, copy.deepcopy(value) if isinstance(value, RANDOM) else copy.copy(value))
    return twin
