"""The empirical Fisher matrix of a problem: the second moment of the gradients of single examples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wellcond.curvature.gauss_newton import GaussNewton
from wellcond.curvature.jacobian import Jacobian


class EmpiricalFisher(GaussNewton):
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

    def _graph(self, index: int) -> Jacobian:  # type: ignore[override]
        output = self._output(index)
        leaves = self._leaves()
        if _mixes_examples(output):
            raise ValueError(
                "batch norm in train mode mixes the examples of a batch: there is no gradient of one example; measure "
                "with mode='eval'"
            )
        return Jacobian(self.problem.example_losses(index, output), leaves)

    def _batch_product(self, graph: Jacobian, pieces: Sequence[Tensor], keep: bool) -> tuple[Tensor, ...]:  # type: ignore[override]
        pushed = graph.push(pieces)
        return graph.pull(pushed / len(pushed), keep)


def _mixes_examples(output: Tensor) -> bool:
    """Whether a batch norm that uses the batch's own statistics is in the graph of an output."""
    seen, stack = set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        # Instance norm is made of batch norm over one example with all channels of the batch.
        if "BatchNorm" in node.name() and node._saved_training and len(node._saved_input) > 1:  # type: ignore[attr-defined]
            return True
        seen.add(node)
        stack.extend(parent for parent, _ in node.next_functions)
    return False
