"""The two conversions between a list of tensors in parameter order and one long vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors in parameter order as one vector, (n,)."""
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `flatten`: views of `vector` with the shapes of `like`; of rows, (k, n), with k in front."""
    pieces = vector.split([t.numel() for t in like], dim=-1)
    return [piece.view(vector.shape[:-1] + t.shape) for piece, t in zip(pieces, like, strict=True)]
