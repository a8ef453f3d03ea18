"""What the curvature operators of a problem have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wellcond.curvature.preconditioned import Preconditioned
from wellcond.linalg import SymmetricOperator
from wellcond.parameters import flatten, unflatten
from wellcond.preconditioners import Preconditioner
from wellcond.problem import Problem


class CurvatureOperator(SymmetricOperator):
    """A curvature matrix of a problem's loss: the weighted mean of its batches' matrices.

    A subclass gives a batch's graph and the product that a graph gives; this class sums over batches and keeps
    graphs where the problem allows.

    Attributes:
        on_batch: called with the part of a product that is done, after each batch but the last, for a progress bar.

    Raises (on multiplying):
        ValueError: where the network or the loss can't be differentiated twice, with the remedy.
    """

    def __init__(self, problem: Problem):
        super().__init__(problem.size, problem.dtype, problem.device)
        self.problem = problem
        self.on_batch: Callable[[float], None] | None = None

    def gradient(self) -> Tensor:
        """∇L(p), (n,)."""
        return self.problem.gradient()

    def semidefinite(self) -> CurvatureOperator | None:
        """The positive semidefinite curvature of the same problem that stands for this one, where there is one."""
        return self if self.positive_semidefinite else None

    def preconditioned(self, P: Preconditioner) -> Preconditioned:
        """PᵀCP, the curvature in the intrinsic parameters z = P⁻¹p (theory, section 1).

        Args:
            P: over this problem's parameters, in any order.
        """
        return Preconditioned(self, P)

    def dense(self) -> Tensor:
        """The matrix itself, (n, n), by n products; inside `with problem:` they are made once."""
        return self.problem.kept_matrix(type(self), super().dense)

    @abstractmethod
    def _graph(self, index: int) -> Any:
        """What products with the matrix of one batch are made from."""

    @abstractmethod
    def _batch_product(self, graph: Any, pieces: list[Tensor], keep: bool) -> tuple[Tensor, ...]:
        """The product of one batch's matrix with a vector, by parameter."""

    def _multiply(self, v: Tensor) -> Tensor:
        problem = self.problem
        with problem.evaluating():
            total = [torch.zeros(p.shape, dtype=v.dtype, device=v.device) for p in problem.parameters]
            pieces = unflatten(v, problem.parameters)
            for index, weight in enumerate(problem.weights):
                graph, kept = problem.kept(type(self), index, partial(self._graph, index))
                for summed, part in zip(total, self._batch_product(graph, pieces, kept), strict=True):
                    summed.add_(part, alpha=weight)
                if self.on_batch is not None and index + 1 < len(problem.weights):
                    self.on_batch((index + 1) / len(problem.weights))
            return flatten(total)
