"""The derivative of something that a network computes, by its parameters, in both directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pulled(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], vectors: Sequence[Tensor], keep: bool
) -> tuple[Tensor, ...]:
    """Σ vectorᵀ ∂output/∂leaf, by leaf; zero where nothing depends on it.

    Args:
        outputs: with graphs, or constant.
        leaves: what they are differentiated by.
        vectors: of the outputs' shapes; or all with one more dimension in front, and so is then the result.
        keep: the graphs for further products.
    """
    front = vectors[0].shape[: vectors[0].ndim - outputs[0].ndim]
    curved = [(y, v) for y, v in zip(outputs, vectors, strict=True) if y.requires_grad]
    if not curved:
        return tuple(x.new_zeros(front + x.shape) for x in leaves)
    found = torch.autograd.grad(
        [y for y, _ in curved],
        leaves,
        [v for _, v in curved],
        retain_graph=keep,
        allow_unused=True,
        is_grads_batched=bool(front),
    )
    return tuple(x.new_zeros(front + x.shape) if g is None else g for x, g in zip(leaves, found, strict=True))


class Jacobian:
    """J = ∂output/∂leaves, as graphs that are differentiated at every product.

    J v comes from differentiating u ↦ Jᵀu, which is linear in u: no forward mode is needed.

    Args:
        output: any shape, with a graph.
        leaves: what it is differentiated by.
    """

    def __init__(self, output: Tensor, leaves: list[Tensor]):
        self.output, self._leaves = output, leaves
        self._cotangent = torch.zeros_like(output, requires_grad=True)
        self._pulled = torch.autograd.grad(
            output, leaves, self._cotangent, create_graph=True, allow_unused=True, materialize_grads=True
        )

    @property
    def outputs(self) -> Sequence[Tensor]:
        """All that is differentiated."""
        return self.output, *self._pulled

    def push(self, pieces: Sequence[Tensor]) -> Tensor:
        """J v, of the output's shape, for v in pieces of the leaves' shapes, or several at once as in `pulled`."""
        return pulled(self._pulled, [self._cotangent], pieces, keep=True)[0]

    def pull(self, u: Tensor, keep: bool) -> tuple[Tensor, ...]:
        """Jᵀu by leaf, or several as in `pulled`; `keep` the graph for further products."""
        return pulled([self.output], self._leaves, [u], keep)
