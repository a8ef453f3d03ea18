"""The derivative of something that a network computes, by its parameters, in both directions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from wellcond.curvature.bilinear import BilinearLayers
from wellcond.curvature.places import Place


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
    found = _reached(outputs, leaves, vectors, keep, batched=bool(front))
    return tuple(x.new_zeros(front + x.shape) if g is None else g for x, g in zip(leaves, found, strict=True))


def pull_into(
    places: Sequence[Place],
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    vectors: Sequence[Tensor],
    keep: bool,
    layers: BilinearLayers | None,
) -> None:
    """What `pulled` finds, into places, one a leaf: of its shape, or with one more dimension in front where the vectors
    have one. Layers that the outputs were evaluated inside of may write there themselves."""
    batched = vectors[0].ndim > outputs[0].ndim
    with contextlib.nullcontext() if batched or layers is None else layers.writing(leaves, places):
        found = _reached(outputs, leaves, vectors, keep, batched)
    for place, summand in zip(places, found, strict=True):
        place.add_last(summand)


def _reached(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], vectors: Sequence[Tensor], keep: bool, batched: bool
) -> Sequence[Tensor | None]:
    """As `pulled`, with None where nothing depends on a leaf."""
    curved = [(y, v) for y, v in zip(outputs, vectors, strict=True) if y.requires_grad]
    if not curved:
        return [None] * len(leaves)
    return torch.autograd.grad(
        [y for y, _ in curved],
        leaves,
        [v for _, v in curved],
        retain_graph=keep,
        allow_unused=True,
        is_grads_batched=batched,
    )


class Jacobian:
    """J = ∂output/∂leaves, as graphs that are differentiated at every product.

    J v comes from differentiating u ↦ Jᵀu, which is linear in u: no forward mode is needed.

    Args:
        output: any shape, with a graph.
        leaves: what it is differentiated by.
        layers: that the output was last evaluated inside of.
        alone: whether nothing of the user's runs in a product.
    """

    def __init__(self, output: Tensor, leaves: list[Tensor], layers: BilinearLayers, alone: bool):
        self.output, self.leaves, self.alone, self._layers = output, leaves, alone, layers
        self._cotangent = torch.zeros_like(output, requires_grad=True)
        self._pulled = layers.differentiable_gradient(output, leaves, self._cotangent)

    def push(self, pieces: Sequence[Tensor]) -> Tensor:
        """J v, of the output's shape, for v in pieces of the leaves' shapes, or several at once as in `pulled`."""
        return pulled(self._pulled, [self._cotangent], pieces, keep=True)[0]

    def pull_into(self, places: Sequence[Place], u: Tensor, keep: bool) -> None:
        """Jᵀu, into places, one a leaf; `keep` the graph for further products."""
        pull_into(places, [self.output], self.leaves, [u], keep, self._layers if self.alone else None)
