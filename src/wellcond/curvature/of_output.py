"""What the matrices Jᵀ…J of a network's output have in common."""

from __future__ import annotations

from torch import Tensor

from wellcond.curvature.operator import CurvatureOperator
from wellcond.problem import Problem, check_depends


class OutputUnknownError(ValueError):
    """The problem does not say what its network's output is, as one tensor."""


class OutputCurvature(CurvatureOperator):
    """A matrix JᵀBJ, B positive semidefinite and J the derivative of the network's output, or of what follows from it.

    Args:
        problem: with a `loss_fn(output, target)` whose output is one tensor.

    Raises:
        OutputUnknownError: where the loss is not split into output and target, or (on multiplying) where the output is
            not one tensor.
    """

    positive_semidefinite = True

    def __init__(self, problem: Problem):
        super().__init__(problem)
        if problem.loss_fn is None:
            raise OutputUnknownError("they need loss_fn(output, target); loss=callable(model, batch) hides the output")

    def _output(self, index: int) -> Tensor:
        output = self.problem.batch_output(index)
        if not isinstance(output, Tensor):
            raise OutputUnknownError(f"they need an output that is one tensor, not a {type(output).__name__}")
        check_depends(output)
        return output
