"""The empirical Fisher matrix of a problem: the second moment of the gradients of single examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from wellcond.curvature.jacobian import Jacobian
from wellcond.curvature.of_output import OutputCurvature
from wellcond.problem import Problem, graph_nodes, with_tensors


class EmpiricalFisher(OutputCurvature):
    """F = (1/N) Σ gᵢgᵢᵀ, gᵢ the gradient of example i's loss at its own target, so that the mean of gᵢ is ∇L.

    It is not the Fisher matrix, whose targets are drawn from the model, and need not be near the Hessian (Kunstner,
    Balles and Hennig, arXiv 1905.12558); it is what the accumulators of adaptive methods see. Not centered.

    Args:
        problem: with a `loss_fn(output, target)` that is a mean (or a sum) over examples, the first dimension of output
            and target.

    Raises:
        OutputUnknownError: as for `GaussNewton`.
        ValueError: (on multiplying) where no gradient of one example exists: batch norm in train mode, or a loss that
            is not a mean or a sum over examples.
    """

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self._scales: dict[int, int | None] = {}

    def batch_graph(self, index: int) -> Jacobian:
        output, leaves = self._output(index), self._leaves()
        return Jacobian(self._example_losses(index, output), leaves)

    def batch_product(self, graph: Jacobian, pieces: Sequence[Tensor], keep: bool) -> Sequence[Tensor]:
        return graph.pull(graph.push(pieces) / len(graph.output), keep)

    def _example_losses(self, index: int, output: Tensor) -> Tensor:
        """The loss of each example of a batch at its output, (N,); their mean is the batch's loss."""
        if any(_mixes_examples(node) for node in graph_nodes(output)):
            raise ValueError(
                "batch norm in train mode mixes the examples of a batch: there is no gradient of one example; measure "
                "with mode='eval'"
            )
        target, N, loss_fn = self.problem.batch[1], len(output), self.problem.loss_fn
        assert loss_fn is not None

        def single(o: Tensor, t: Any) -> Tensor:
            return loss_fn(o[None], with_tensors(t, lambda x: x[None])).reshape(())

        try:
            losses = torch.func.vmap(single)(output, target)
        except (RuntimeError, ValueError, TypeError):  # not every loss can be mapped over examples
            losses = torch.stack([single(output[i], with_tensors(target, itemgetter(i))) for i in range(N)])
        if not self.problem.traced:  # a tracer has no values to compare
            self._scales[index] = _scale(losses.detach(), loss_fn(output, target).detach())
        scale = self._scales[index]
        if scale is not None:
            return losses if scale == 1 else scale * losses
        raise ValueError(
            f"the loss of batch {index} is neither the mean nor the sum of its examples' losses (class weights? an "
            "ignored index? a loss between examples?): there is no gradient of one example"
        )


def _scale(losses: Tensor, whole: Tensor) -> int | None:
    """The number whose product with the examples' losses has the batch's loss for its mean; None where it is neither
    their mean nor their sum."""
    rounding = math.sqrt(torch.finfo(losses.dtype).eps) * losses.abs().mean()
    if bool((losses.mean() - whole).abs() <= rounding):
        return 1
    return len(losses) if bool((losses.sum() - whole).abs() <= len(losses) * rounding) else None


def _mixes_examples(node: Any) -> bool:
    """Whether a node is a batch norm by the batch's own statistics. (Instance norm is made of batch norm over one
    example with all channels of the batch.)"""
    return "BatchNorm" in node.name() and node._saved_training and len(node._saved_input) > 1
