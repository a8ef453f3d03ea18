"""Long vectors: the one place where they are multiplied with each other, and where random ones come from."""

from __future__ import annotations

import torch
from torch import Tensor


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of long vectors.

    Every sum over the n coordinates of a long vector goes through here, so that a vector may later be the shard of
    a distributed one.

    Args:
        x: (n,) or (k, n).
        y: (n,).

    Returns:
        () or (k,).
    """
    return x @ y


def norm(x: Tensor) -> float:
    """Euclidean norm of a long vector."""
    return float(inner(x, x).clamp_min(0).sqrt())


class RandomDirections:
    """A seeded stream of vectors, uniform on the unit sphere of R^n, drawn on the device where they are used."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, seed: int):
        self.size, self.dtype, self.device = size, dtype, device
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def draw(self) -> Tensor:
        """The next direction, (n,)."""
        x = torch.randn(self.size, dtype=self.dtype, device=self.device, generator=self.generator)
        return x / inner(x, x).sqrt()
