"""The derivative of something that a network computes, by its parameters, in both directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Jacobian:
    """J = ∂output/∂leaves, as graphs that are differentiated at every product.

    J v comes from differentiating u ↦ Jᵀu, which is linear in u: no forward mode is needed.

    Args:
        output: any shape, with a graph.
        leaves: what it is differentiated by.
    """

    def __init__(self, output: Tensor, leaves: list[Tensor]):
        self.output, self.leaves = output, leaves
        self._cotangent = torch.zeros_like(output, requires_grad=True)
        self._pulled = torch.autograd.grad(
            output, leaves, self._cotangent, create_graph=True, allow_unused=True, materialize_grads=True
        )

    def push(self, pieces: Sequence[Tensor]) -> Tensor:
        """J v, of the output's shape, for v in pieces of the leaves' shapes."""
        used = [(g, v) for g, v in zip(self._pulled, pieces, strict=True) if g.requires_grad]
        if not used:
            return torch.zeros_like(self.output)
        (pushed,) = torch.autograd.grad(
            [g for g, _ in used], self._cotangent, [v for _, v in used], retain_graph=True, materialize_grads=True
        )
        return pushed

    def pull(self, u: Tensor, keep: bool) -> tuple[Tensor, ...]:
        """Jᵀu, by leaf; `keep` the graph for further products."""
        return torch.autograd.grad(
            self.output, self.leaves, u, retain_graph=keep, allow_unused=True, materialize_grads=True
        )
