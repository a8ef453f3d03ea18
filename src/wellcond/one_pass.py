"""An elementwise update of many tensors in one pass over memory: compiled, or eagerly in blocks that fit a cache."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

Scalar = float | Tensor
# (tensors of one shape, S scalars) → the new values of the first of these tensors, which it may overwrite. They come in
# at least float32; the scalars as floats where it runs eagerly on the CPU, which is faster than 0-dim tensors.
Update = Callable[[Sequence[Tensor], Sequence[Scalar]], Sequence[Tensor]]
Kernel = Callable[[list[list[Tensor]], Tensor], None]

# Tensors a call. With one, the call itself (20 μs) costs as much as AdamW on 60,000 parameters; with eight the step is
# no faster than with four, and takes 12 s to compile in place of 9 (benchmarks/optimizer_step.py).
BATCH = 4
# Blocks of 2¹⁷ entries were the fastest of 2¹³ … 2²⁰ with a megabyte of second-level cache a core.
BLOCK = 2**17
# Compiling (9 s) saves 20 ms a step on 16 million entries: it pays after 500 steps there, and here after 7,000.
WORTH_COMPILING = 2**20


_KERNELS: dict[Hashable, Kernel | None] = {}
"""Kept for the life of the process; None where it could not be compiled."""


class Passes:
    """The rows of one step, gathered by the update that is theirs, and updated in place.

    Compiled, an update is one kernel for any number and any sizes of tensors.

    Args:
        compiled: by torch.compile, where it works; None: only where the number of entries makes it pay.
    """

    def __init__(self, compiled: bool | None):
        self.compiled = compiled
        self._gathered: dict[Hashable, tuple[Update, list[list[Tensor]], list[Tensor]]] = {}

    def add(self, key: Hashable, update: Update, rows: Sequence[Sequence[Tensor]], columns: Sequence[Scalar]) -> None:
        """Rows with their scalars.

        Args:
            key: of the update.
            update: which may be kept for the life of the process.
            rows: tensors of one shape and device each.
            columns: S numbers of every row, or tensors of one number or of one for each row.
        """
        table = _table(columns, len(rows))
        for row, scalars in zip(map(_flat, rows), table.unbind(), strict=True):
            if row[0].numel():
                kind = (key, row[0].device, table.device, row[0].dim() == 1, *[t.dtype for t in row])
                _, like, their_scalars = self._gathered.setdefault(kind, (update, [], []))
                like.append(row)
                their_scalars.append(scalars)

    def run(self) -> bool:
        """Update them all; whether what was to be compiled was. It runs eagerly where no compiler works."""
        works = True
        for kind, (update, rows, scalars) in self._gathered.items():
            like = rows[0][0]
            s = torch.stack(scalars).to(like.device, _precision(like), non_blocking=True)
            pays = sum(row[0].numel() for row in rows) >= WORTH_COMPILING
            kernel = None
            if like.dim() == 1 and (pays if self.compiled is None else self.compiled):
                if kind not in _KERNELS:
                    _KERNELS[kind] = _compile(update, rows[0], s[:1].repeat(BATCH, 1))
                kernel = _KERNELS[kind]
                works &= kernel is not None
            if kernel:
                _in_batches(kernel, rows, s)
                continue
            for row, numbers in zip(rows, s.unbind(), strict=True):
                _eagerly(update, row, numbers)
        return works


def _in_batches(kernel: Kernel, rows: list[list[Tensor]], s: Tensor) -> None:
    missing = -len(rows) % BATCH
    padded = rows + [[t.new_zeros(2) for t in rows[0]]] * missing
    of_padded = torch.cat([s, s[:1].expand(missing, -1)])
    for start, of_batch in enumerate(of_padded.split(BATCH)):
        kernel(padded[start * BATCH : (start + 1) * BATCH], of_batch)


def _eagerly(update: Update, row: Sequence[Tensor], s: Tensor) -> None:
    block = BLOCK if row[0].device.type == "cpu" and row[0].dim() == 1 else row[0].numel()
    pieces = zip(*(t.split(block) for t in row), strict=True) if row[0].numel() > block else [row]
    numbers = s.tolist() if s.device.type == "cpu" else s.unbind()
    for piece in pieces:
        _write(update, piece, numbers)


def _compile(update: Update, like: Sequence[Tensor], s: Tensor) -> Kernel | None:
    """The update of `BATCH` rows at a time, traced on tensors of its own: no matter which sizes come first."""

    def batch(rows: list[list[Tensor]], scalars: Tensor) -> None:
        for row, numbers in zip(rows, scalars.unbind(), strict=True):
            _write(update, row, numbers.unbind())

    # Dynamo counts variants by code object and gives up after eight: each kernel gets its own.
    own = types.FunctionType(batch.__code__.replace(), batch.__globals__, "batch", None, batch.__closure__)
    # Different sizes, or Dynamo takes them for one; all large enough to be worth more than one thread.
    trial = [[torch.zeros(4096 * (2 + i), dtype=t.dtype, device=t.device) for t in like] for i in range(BATCH)]
    # Guards take a third of a call, and all that they look at is in the kernel's key, or a symbol in the kernel.
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    try:
        kernel = torch.compile(own, dynamic=True, fullgraph=True, options=options)
        kernel(trial, s)
    except Exception as error:
        warnings.warn(
            f"torch.compile does not work here ({type(error).__name__}: {str(error).splitlines()[0][:120]}); "
            "running the same formulas eagerly, which is slower",
            stacklevel=2,
        )
        return None
    return kernel


def where_positive(x: Scalar, new: Tensor, old: Tensor) -> Tensor:
    """`new` if x > 0, else `old`; of the S scalars of an `Update`."""
    if isinstance(x, Tensor):
        return torch.where(x > 0, new, old)
    return new if x > 0 else old


def _write(update: Update, row: Sequence[Tensor], s: Sequence[Scalar]) -> None:
    dtype = _precision(row[0])
    for t, new in zip(row, update([t.to(dtype) for t in row], s), strict=False):
        t.copy_(new)


def _precision(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _table(columns: Sequence[Scalar], n: int) -> Tensor:
    """(n, S) in float64, where the tensors among the columns are, so that nothing waits for a copy from a device."""
    devices = [column.device for column in columns if isinstance(column, Tensor)]
    place = next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
    filled = [
        column.to(place, torch.float64, non_blocking=True).expand(n)
        if isinstance(column, Tensor)
        else torch.full((n,), column, dtype=torch.float64, device=place)
        for column in columns
    ]
    return torch.stack(filled, 1)


def _flat(row: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as vectors over the same memory, entry by entry; as they are where their layouts differ."""
    if all(t.is_contiguous() for t in row):
        return [t if t.dim() == 1 else t.view(-1) for t in row]
    strides, sizes = row[0].stride(), row[0].shape
    order = sorted(range(len(sizes)), key=lambda d: (-strides[d], -sizes[d]))
    turned = [t.permute(order) for t in row]
    return [t.view(-1) for t in turned] if all(t.is_contiguous() for t in turned) else list(row)
