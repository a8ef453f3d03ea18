"""Where the parts of a product are summed, one for each parameter."""

from __future__ import annotations

import torch
from torch import Tensor


class Place:
    """A sum that is formed in a given tensor.

    Args:
        tensor: of the sum's shape; what it holds is lost.
    """

    def __init__(self, tensor: Tensor):
        self._tensor, self._empty = tensor, True

    def add_product(self, d: Tensor, x: Tensor) -> None:
        """Add dᵀx, for d of shape (N, a) and x of shape (N, b), which the matrix product itself writes."""
        if self._empty:
            torch.mm(d.T, x, out=self._tensor)
        else:
            self._tensor.addmm_(d.T, x)
        self._empty = False

    def add_last(self, summand: Tensor | None) -> None:
        """Add what else there is, if anything; after it the sum is complete."""
        if summand is not None:
            (self._tensor.copy_ if self._empty else self._tensor.add_)(summand.detach())
        elif self._empty:
            self._tensor.zero_()


class Terms(Place):
    """A sum that is not formed: its terms are collected.

    Attributes:
        products: pairs (d, x) of terms dᵀx.
        summand: what else is added, or None.
    """

    def __init__(self) -> None:
        self.products: list[tuple[Tensor, Tensor]] = []
        self.summand: Tensor | None = None

    def add_product(self, d: Tensor, x: Tensor) -> None:
        self.products.append((d, x))

    def add_last(self, summand: Tensor | None) -> None:
        self.summand = summand

    @property
    def tensors(self) -> list[Tensor]:
        """All of them in order."""
        return [x for pair in self.products for x in pair] + ([] if self.summand is None else [self.summand])
