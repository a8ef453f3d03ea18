"""Long vectors: the one place where they are multiplied with each other, and where random ones come from."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

BLOCK, LONG = 4096, 2**17
"""In vectors of float32 longer than `LONG` products are summed in float32 within a block and in float64 over blocks: a
plain float32 sum over a million coordinates was off by 2e-5, enough to ruin the orthogonality of a Lanczos basis."""

STREAM = 0x5EED0FD12EC7
"""Sets the random directions' streams apart from those that `torch.manual_seed` starts."""


T = TypeVar("T", float, Tensor)


def finite(x: T) -> T:
    """What was made of products, as it is.

    Raises:
        FloatingPointError: if it is not finite.
    """
    if not bool(torch.as_tensor(x).isfinite().all()):
        raise FloatingPointError(
            "a product with the curvature is not finite: the loss has no second derivative at these parameters (for "
            "example √ or a norm at 0), or it overflows"
        )
    return x


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of long vectors.

    Every sum over the n coordinates of a long vector goes through here, so that a vector may later be the shard of
    a distributed one.

    Args:
        x: (n,) or (k, n).
        y: (n,).

    Returns:
        () or (k,), in the dtype of x.
    """
    n = len(y)
    if x.dtype == torch.float64 or n <= LONG:
        return x @ y
    rows, whole = x.reshape(-1, n), n - n % BLOCK
    blocks = rows[:, :whole].unflatten(1, (-1, BLOCK)).transpose(0, 1)
    sums = torch.bmm(blocks, y[:whole].view(-1, BLOCK, 1)).double().sum(0).squeeze(1)
    return (sums + rows[:, whole:] @ y[whole:]).to(x.dtype).reshape(x.shape[:-1])


def norm(x: Tensor) -> float:
    """Euclidean norm of a long vector; its squares neither overflow nor underflow."""
    length = math.sqrt(float(inner(x, x)))
    if 1e-15 < length < 1e15:
        return length
    unit = float(x.abs().max())
    if unit == 0 or not math.isfinite(unit):
        return unit
    scaled = x / unit
    return unit * math.sqrt(float(inner(scaled, scaled)))


def without(Q: Tensor, v: Tensor) -> Tensor:
    """v less its part in the space of Q's orthonormal rows, (k, n); twice: once leaves rounding of the size of v."""
    for _ in range(2):
        v = v - inner(Q, v) @ Q
    return v


def rotate(rows: Tensor, S: Tensor) -> None:
    """Replace the first rows by Sᵀ·rows, with a copy of no more than some columns at a time.

    Args:
        rows: (m, n), overwritten.
        S: (m, k), k ≤ m, in any dtype and on any device.
    """
    St = S.T.to(rows)
    for start in range(0, rows.shape[1], LONG):
        part = rows[:, start : start + LONG]
        part[: len(St)] = St @ part


class RandomDirections:
    """A seeded stream of vectors, uniform on the unit sphere of R^n, drawn on the device where they are used.

    It is not the stream that `torch.manual_seed(seed)` starts: a network initialized from that one, and with it the
    network's eigenvectors, would not be independent of these directions.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, seed: int):
        self.size, self.dtype, self.device = size, dtype, device
        self.generator = torch.Generator(device=device).manual_seed(seed ^ STREAM)

    def draw(self) -> Tensor:
        """The next direction, (n,)."""
        x = torch.randn(self.size, dtype=self.dtype, device=self.device, generator=self.generator)
        return x / norm(x)
