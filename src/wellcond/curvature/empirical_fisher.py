"""The empirical Fisher matrix of a problem: the second moment of the gradients of single examples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wellcond.curvature.jacobian import Jacobian
from wellcond.curvature.of_output import OutputCurvature
from wellcond.curvature.places import Place


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

    def _graph(self, index: int) -> Jacobian:
        output, leaves = self._output(index), self._leaves()
        alone = self._layers.derivatives_alone(output)
        with self._layers:
            losses = self.problem.example_losses(index, output)
        return Jacobian(losses, leaves, self._layers, alone and self._layers.derivatives_alone(losses))

    def _batch_product(self, places: Sequence[Place], graph: Jacobian, pieces: Sequence[Tensor], keep: bool) -> None:
        pushed = graph.push(pieces)
        graph.pull_into(places, pushed / len(graph.output), keep)
