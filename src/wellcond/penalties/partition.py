"""Groups of a tensor's entries. What is said of every group has a shape of its own until it is spread over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Slices:
    """One group for every index along a dimension; `name` is what the caller gave, for a repr."""

    def __init__(self, dim: int):
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim is {dim!r}; give one dimension of the penalized tensors, or groups=")
        self.dim, self.name = dim, {"dim": dim}

    def total(self, x: Tensor) -> Tensor:
        """The sum of every group."""
        return x.unsqueeze(-1).sum(self._others(x), keepdim=True).squeeze(-1)

    def largest(self, x: Tensor) -> Tensor:
        """The largest absolute value in every group; NaN where there is one."""
        return x.abs().unsqueeze(-1).amax(self._others(x), keepdim=True).squeeze(-1)

    def spread(self, groups: Tensor, x: Tensor) -> Tensor:
        """Every group's number at its entries, broadcasting against x."""
        return groups

    def root_size(self, x: Tensor) -> float:
        """The root of every group's number of entries."""
        return math.sqrt(math.prod(x.shape[d] for d in self._others(x)[:-1]))

    def _others(self, x: Tensor) -> list[int]:
        """All dimensions but ours and one more at the end: to torch, no dimensions would mean all."""
        if not -x.ndim <= self.dim < x.ndim:
            raise ValueError(
                f"a tensor of shape {tuple(x.shape)} has no dimension {self.dim} to group by; give another, or groups="
            )
        return [d for d in range(x.ndim + 1) if d != self.dim % x.ndim]


class Numbered:
    """Any partition, by the number of every entry's group; it answers what `Slices` does."""

    def __init__(self, groups: Tensor):
        if not isinstance(groups, Tensor):
            raise TypeError(f"groups is a {type(groups).__name__}; give {_WANTED}")
        if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
            raise ValueError(f"groups has dtype {groups.dtype}, which numbers no groups; give {_WANTED}")
        if groups.numel() and groups.min() < 0:
            raise ValueError(f"groups has {groups.min()} in it, an entry in no group; give {_WANTED}")
        # Renumbered without gaps, so that a large number costs no memory.
        _, index, sizes = groups.unique(return_inverse=True, return_counts=True)
        self.shape, self.count = groups.shape, len(sizes)
        self.name = {"groups": f"<{self.count} groups over shape {tuple(groups.shape)}>"}
        self._copies = {groups.device: (index.flatten(), sizes)}

    def total(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.count).index_add(0, self._on(x)[0], x.flatten())

    def largest(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.count).scatter_reduce(0, self._on(x)[0], x.abs().flatten(), "amax")

    def spread(self, groups: Tensor, x: Tensor) -> Tensor:
        return groups[self._on(x)[0]].view(x.shape)

    def root_size(self, x: Tensor) -> Tensor:
        return self._on(x)[1].to(x.dtype).sqrt()

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Every entry's group and the groups' sizes, on x's device, moved there once."""
        if x.shape != self.shape:
            raise ValueError(
                f"groups has shape {tuple(self.shape)} and doesn't cover a tensor of shape {tuple(x.shape)}; "
                f"give {_WANTED}"
            )
        if x.device not in self._copies:
            index, sizes = next(iter(self._copies.values()))
            self._copies[x.device] = index.to(x.device), sizes.to(x.device)
        return self._copies[x.device]


_WANTED = "an integer tensor of the penalized tensor's shape, with every entry's group number, 0 or more"
