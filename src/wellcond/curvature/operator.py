"""What the curvature operators of a problem have in common, and such an operator seen through a change of variables."""

from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from wellcond.curvature.engine import kept_matrix, multiply, multiply_columns
from wellcond.linalg import SymmetricOperator
from wellcond.parameters import flatten, unflatten
from wellcond.preconditioners import Preconditioner
from wellcond.problem import Problem, check_problem, positions_of

WORTH_KEEPING = 2
"""Products from which on a kept graph pays: it costs a third of a gradient to size, one to make and about 1.5 for each
product; streaming takes about 2.5 for each."""


class CurvatureOperator(SymmetricOperator):
    """A curvature matrix of a problem's loss: the weighted mean of its batches' matrices.

    A subclass gives a batch's graph and the product that a graph gives; the engine makes products of them.

    Attributes:
        problem: whose loss.
        positions: of the parameters that it is over, in the problem's order: all, or those of a block.
        names, parameters: theirs.
        on_batch: called with the part of a product that is done, after each batch but the last, for a progress bar.

    Raises (on multiplying):
        ValueError: where the network or the loss can't be differentiated twice, with the remedy.
    """

    def __init__(self, problem: Problem):
        check_problem(problem)
        super().__init__(problem.size, problem.dtype, problem.device)
        self.problem = problem
        self.positions = tuple(range(len(problem.parameters)))
        self.on_batch: Callable[[float], None] | None = None

    @property
    def names(self) -> list[str]:
        return [self.problem.names[i] for i in self.positions]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [self.problem.parameters[i] for i in self.positions]

    def block(self, *which: str | nn.Module | nn.Parameter) -> Self:
        """The diagonal block of some parameters: the curvature with all others held fixed.

        Args:
            which: names or patterns of names ("layers.0.*"), modules, parameters.

        Raises:
            TypeError, ValueError: for what is none of these, or no parameter of this operator.
        """
        block = copy.copy(self)
        block.positions = tuple(self.positions[i] for i in positions_of(which, self.problem.model, self.parameters))
        block.size, block.products = sum(p.numel() for p in block.parameters), 0
        block.on_product = block.on_batch = None
        return block

    def gradient(self) -> Tensor:
        """∇L(p) by these parameters, (n,)."""
        whole = unflatten(self.problem.gradient(), self.problem.parameters)
        return flatten([whole[i] for i in self.positions])

    def semidefinite(self) -> CurvatureOperator | None:
        """The positive semidefinite curvature of the same problem that stands for this one, where there is one."""
        return self if self.positive_semidefinite else None

    def preconditioned(self, P: Preconditioner) -> Preconditioned:
        """PᵀCP, the curvature in the intrinsic parameters z = P⁻¹p (theory, section 1).

        Args:
            P: over this operator's parameters, in any order.
        """
        if not isinstance(P, Preconditioner):
            raise TypeError(f"got a {type(P).__name__}; give a preconditioner, such as wc.preconditioner_of(optimizer)")
        return Preconditioned(self, P)

    def check_of(self, problem: Problem) -> None:
        """Refuse to stand for the curvature of another problem, or of all its parameters where this is a block."""
        if self.problem is not problem or self.size != problem.size:
            raise ValueError(
                "curvature= is of another problem, or a block; give one over all of this problem's parameters"
            )

    def keeping(self, products: int) -> contextlib.AbstractContextManager[object]:
        """`with problem:` where that pays for this number of products."""
        return self.problem if products >= WORTH_KEEPING else contextlib.nullcontext()

    def dense(self) -> Tensor:
        """The matrix itself, (n, n), by n products; inside `with problem:` they are made once."""
        return self._with_damping(kept_matrix(self, lambda: SymmetricOperator.dense(self.undamped())))

    @property
    def key(self) -> tuple[Any, ...]:
        """Under which its graphs are kept."""
        return type(self), self.positions

    def _leaves(self) -> list[Tensor]:
        """What stands for the parameters in the latest evaluation."""
        return [self.problem.leaves[i] for i in self.positions]

    @abstractmethod
    def batch_graph(self, index: int) -> Any:
        """What products with the matrix of one batch are made from; its `outputs` are all that they differentiate."""

    @abstractmethod
    def batch_product(self, graph: Any, pieces: Sequence[Tensor], keep: bool) -> Sequence[Tensor]:
        """The product of one batch's matrix with a vector, by parameter, or with several at once where the pieces have
        one more dimension in front.

        Args:
            graph: the batch's.
            pieces: of the vector, by parameter.
            keep: the graph for further products.
        """

    def _multiply(self, v: Tensor) -> Tensor:
        return multiply(self, v)

    def _columns(self, V: Tensor) -> Tensor:
        if V.shape[1] < 3:
            return super()._columns(V)
        first = self._multiply(V[:, 0].contiguous())
        self.count()
        products = multiply_columns(self, V, first, self.count)
        if products is not None:
            return torch.add(products, V, alpha=self.damping)
        damped = torch.add(first, V[:, 0], alpha=self.damping)
        return torch.cat([damped[:, None], super()._columns(V[:, 1:])], dim=1)


class Preconditioned(SymmetricOperator):
    """PᵀCP for a curvature operator C of a problem: what decides the speed of a preconditioned method.

    Args:
        curvature: C.
        P: over the problem's parameters, in any order.
    """

    def __init__(self, curvature: CurvatureOperator, P: Preconditioner):
        super().__init__(curvature.size, curvature.dtype, curvature.device)
        self.curvature = curvature
        self.P = P.over(curvature.parameters, curvature.names, curvature.dtype)
        self.positive_semidefinite = curvature.positive_semidefinite
        self.rounding = self.P.rounding

    def gradient(self) -> Tensor:
        """Pᵀ∇L, the gradient in z."""
        return self._through(self.P.adjoint, self.curvature.gradient())

    def semidefinite(self) -> SymmetricOperator | None:
        """PᵀGP where C has a positive semidefinite stand-in G."""
        stand_in = self.curvature.semidefinite()
        if stand_in is None:
            return None
        twin = self if stand_in is self.curvature else stand_in.preconditioned(self.P).damped(self.damping)
        return twin if twin.positive_semidefinite else None

    def keeping(self, products: int) -> contextlib.AbstractContextManager[object]:
        return self.curvature.keeping(products)

    def _multiply(self, v: Tensor) -> Tensor:
        return self._through(self.P.adjoint, self.curvature.matvec(self._through(self.P.apply, v)))

    def dense(self) -> Tensor:
        """PᵀCP, (n, n), from the dense C: P is applied to its rows and columns, without products beyond C's n."""
        spent = self.curvature.products
        half = self._adjoint_of(self.curvature.dense())
        self.products += self.curvature.products - spent
        return self._with_damping(self._adjoint_of(half.T).T)

    def _adjoint_of(self, matrix: Tensor) -> Tensor:
        return torch.stack([self._through(self.P.adjoint, column) for column in matrix.T], dim=1)

    def _through(self, change: Callable[[list[Tensor]], list[Tensor]], v: Tensor) -> Tensor:
        return flatten(change(unflatten(v, self.curvature.parameters)))
