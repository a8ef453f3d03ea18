"""An elementwise update of many tensors in one pass over memory: compiled, or eagerly in blocks that fit a cache."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Hashable, Sequence

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


class OnePass:
    """An `Update` applied in place.

    Compiled, it is one kernel for any number and any sizes of tensors: it is traced on tensors of its own, so that it
    doesn't depend on which sizes come first.
    """

    def __init__(self, update: Update):
        self.update = update
        self._compiled: dict[object, Kernel | None] = {}

    def __call__(self, rows: Sequence[Sequence[Tensor]], scalars: Tensor, compiled: bool) -> bool:
        """Update the tensors of each row with its scalars; whether it was compiled, if that was asked for.

        Args:
            rows: tensors of one shape and device each.
            scalars: (n, S), S for each row, on any device.
            compiled: by torch.compile, where it works.
        """
        alike: dict[object, list[int]] = {}
        for i, row in enumerate(rows):
            if row[0].numel():
                alike.setdefault((row[0].device, *(t.dtype for t in row)), []).append(i)
        works = True
        for kind, members in alike.items():
            flat = [_flat(rows[i]) for i in members]
            like = flat[0][0]
            chosen = scalars if len(members) == len(rows) else _some(scalars, members)
            s = chosen.to(like.device, _precision(like), non_blocking=True)
            kernel = self._kernel(kind, flat[0], s[:1]) if compiled else None
            works &= kernel is not None
            # A size of one would be compiled into the kernel, and so would a layout that is not flat.
            batched = [i for i, row in enumerate(flat) if kernel and row[0].dim() == 1 and row[0].numel() > 1]
            alone = sorted({*range(len(flat))}.difference(batched))
            for i, numbers in zip(alone, _some(s, alone).unbind() if alone else (), strict=True):
                self._eagerly(flat[i], numbers)
            if kernel and batched:
                self._in_batches(kernel, [flat[i] for i in batched], _some(s, batched) if alone else s)
        return works or not compiled

    def _in_batches(self, kernel: Kernel, rows: list[list[Tensor]], s: Tensor) -> None:
        missing = -len(rows) % BATCH
        # Tensors of its own for each: Dynamo compiles again where one comes twice.
        padded = rows + [[t.new_zeros(2) for t in rows[0]] for _ in range(missing)]
        of_padded = torch.cat([s, s[:1].expand(missing, -1)])
        for start, of_batch in enumerate(of_padded.split(BATCH)):
            kernel(padded[start * BATCH : (start + 1) * BATCH], of_batch)

    def _eagerly(self, row: Sequence[Tensor], s: Tensor) -> None:
        block = BLOCK if row[0].device.type == "cpu" and row[0].dim() == 1 else row[0].numel()
        pieces = zip(*(t.split(block) for t in row), strict=True) if row[0].numel() > block else [row]
        numbers = s.tolist() if s.device.type == "cpu" else s.unbind()
        for piece in pieces:
            _write(self.update, piece, numbers)

    def _kernel(self, kind: object, like: Sequence[Tensor], s: Tensor) -> Kernel | None:
        if kind not in self._compiled:
            self._compiled[kind] = self._compile(like, s.repeat(BATCH, 1))
        return self._compiled[kind]

    def _compile(self, like: Sequence[Tensor], s: Tensor) -> Kernel | None:
        update = self.update

        def batch(rows: list[list[Tensor]], scalars: Tensor) -> None:
            for i in range(BATCH):
                _write(update, rows[i], scalars[i].unbind())

        # Dynamo counts variants by code object and gives up after eight: each kernel gets its own.
        own = types.FunctionType(
            batch.__code__.replace(), batch.__globals__, "batch", batch.__defaults__, batch.__closure__
        )
        # Different sizes, or Dynamo takes them for one; all large enough to be worth more than one thread.
        trial = [[torch.zeros(4096 * (2 + i), dtype=t.dtype, device=t.device) for t in like] for i in range(BATCH)]
        try:
            kernel = torch.compile(own, dynamic=True, fullgraph=True)
            kernel(trial, s)
        except Exception as error:
            warnings.warn(
                f"torch.compile does not work here ({type(error).__name__}: {str(error).splitlines()[0][:120]}); "
                "running the same formulas eagerly, which is slower",
                stacklevel=2,
            )
            return None
        return kernel


_KERNELS: dict[Hashable, OnePass] = {}


class Passes:
    """The rows of one step, gathered by the update that is theirs. A kernel is kept for the life of the process.

    Args:
        compiled: whether the updates are; None for those on so many entries that it pays.
    """

    def __init__(self, compiled: bool | None):
        self.compiled = compiled
        self._gathered: dict[Hashable, tuple[OnePass, list[Sequence[Tensor]], list[Tensor]]] = {}

    def add(
        self, key: Hashable, update: Callable[[], Update], rows: Sequence[Sequence[Tensor]], columns: Sequence[Scalar]
    ) -> None:
        """Rows with their scalars, for the update of this key, which is built if it is new.

        Args:
            key: of the update.
            update: builds it.
            rows: tensors of one shape and device each.
            columns: S numbers of every row, or tensors of one number or of one for each row.
        """
        if key not in _KERNELS:
            _KERNELS[key] = OnePass(update())
        scalars = _table(columns, len(rows))
        _, all_rows, tables = self._gathered.setdefault((key, scalars.device), (_KERNELS[key], [], []))
        all_rows.extend(rows)
        tables.append(scalars)

    def run(self) -> bool:
        """Update them all; whether what was to be compiled was."""
        works = True
        for kernel, rows, tables in self._gathered.values():
            entries = sum(row[0].numel() for row in rows)
            compiled = entries >= WORTH_COMPILING if self.compiled is None else self.compiled
            works &= kernel(rows, torch.cat(tables), compiled)
        return works


def where_positive(x: Scalar, new: Tensor, old: Tensor) -> Tensor:
    """`new` if x > 0, else `old`; of the S scalars of an `Update`."""
    if isinstance(x, Tensor):
        return torch.where(x > 0, new, old)
    return new if x > 0 else old


def _write(update: Update, row: Sequence[Tensor], s: Sequence[Scalar]) -> None:
    dtype = _precision(row[0])
    for t, new in zip(row, update([t.to(dtype) for t in row], s), strict=False):
        t.copy_(new)


def _some(scalars: Tensor, members: Sequence[int]) -> Tensor:
    """Some rows; by their views, for an index would be copied to a device."""
    rows = scalars.unbind()
    return torch.stack([rows[i] for i in members])


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
    first = row[0]
    if all(t.is_contiguous() for t in row):
        return [t.view(-1) for t in (first.detach(), *row[1:])]
    strides, sizes = first.stride(), first.shape
    order = sorted(range(first.dim()), key=lambda d: (-strides[d], -sizes[d]))
    turned = [t.detach().permute(order) for t in row]
    return [t.view(-1) for t in turned] if all(t.is_contiguous() for t in turned) else [t.detach() for t in row]
