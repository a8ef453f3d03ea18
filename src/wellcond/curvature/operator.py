"""What the curvature operators of a problem have in common."""

from __future__ import annotations

import contextlib
import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from wellcond.curvature.bilinear import BilinearLayers
from wellcond.curvature.compiled import compiled_product, kept_product
from wellcond.curvature.places import Place
from wellcond.curvature.preconditioned import Preconditioned
from wellcond.linalg import SymmetricOperator
from wellcond.parameters import flatten, unflatten
from wellcond.preconditioners import Preconditioner
from wellcond.problem import Problem, check_problem

WORTH_KEEPING = 2
"""Products from which on a kept graph pays: it costs a third of a gradient to size, one to make and about 1.5 for each
product; streaming takes about 2.5 for each."""


class CurvatureOperator(SymmetricOperator):
    """A curvature matrix of a problem's loss: the weighted mean of its batches' matrices.

    A subclass gives a batch's graph and the product that a graph gives; this class sums over batches and keeps
    graphs where the problem allows.

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
        self._layers = BilinearLayers()
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
        block.positions = self.problem.positions_of(which, self.positions)
        block.size, block.products = sum(p.numel() for p in block.parameters), 0
        block.on_product = block.on_batch = None
        # Of a part of the parameters Python can't tell which derivatives it has no use for.
        block._layers = BilinearLayers(own=block.size == self.problem.size)
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
        """`with problem:` where so many products are worth it."""
        return self.problem if products >= WORTH_KEEPING else contextlib.nullcontext()

    def dense(self) -> Tensor:
        """The matrix itself, (n, n), by n products; inside `with problem:` they are made once."""

        def formed() -> Tensor:
            undamped = self.damped(-self.damping)
            undamped.on_product = self.on_product
            matrix = SymmetricOperator.dense(undamped)
            self.products += undamped.products
            return matrix

        return self._with_damping(self.problem.kept_matrix(self.key, formed))

    @property
    def key(self) -> tuple[Any, ...]:
        """Under which its graphs are kept."""
        return type(self), self.positions

    def _leaves(self) -> list[Tensor]:
        """What stands for the parameters in the latest evaluation."""
        return [self.problem.leaves[i] for i in self.positions]

    @abstractmethod
    def _graph(self, index: int) -> Any:
        """What products with the matrix of one batch are made from. Its attribute `alone` says whether nothing of the
        user's runs in a product."""

    @abstractmethod
    def _batch_product(self, places: Sequence[Place], graph: Any, pieces: Sequence[Tensor], keep: bool) -> None:
        """The product of one batch's matrix with a vector, or with several at once where the pieces have one more
        dimension in front.

        Args:
            places: one for each parameter, of the pieces' shapes.
            graph: the batch's.
            pieces: of the vector, by parameter.
            keep: the graph for further products.
        """

    def _columns(self, V: Tensor) -> Tensor:
        """Several columns in one backward pass where the network is so small that most of a product is overhead."""
        if V.shape[1] < 3 or self.problem.compile or self.key in self.problem.one_by_one:
            return super()._columns(V)
        first = self.matvec(V[:, 0].contiguous())
        together = self._together(V)
        if together is not None and _agree(together[:, 0], first):
            return together
        self.problem.one_by_one.add(self.key)
        return torch.cat([first[:, None], super()._columns(V[:, 1:])], dim=1)

    def _together(self, V: Tensor) -> Tensor | None:
        """The product with each column of V, (n, k) → (n, k), or None where torch can't do that for this network. The
        first column's is here for comparison, and not counted."""
        parts = []
        with self.problem.evaluating(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # an operation that goes one by one
            at_once = self.problem.columns_at_once()
            if at_once < 2:
                return None
            for chunk in V.split(at_once, dim=1):
                total = torch.zeros_like(chunk)
                rows = chunk.T.contiguous()
                for index, weight in enumerate(self.problem.weights):
                    kept = self.problem.kept(self.key, index, partial(self._graph, index))
                    try:
                        product = self._product_by(kept or self._graph(index), rows, keep=kept is not None)
                    except RuntimeError:
                        return None
                    total.add_(product.T, alpha=weight)
                parts.append(torch.add(total, chunk, alpha=self.damping))
                for _ in range(chunk.shape[1] - (len(parts) == 1)):
                    self.products += 1
                    if self.on_product is not None:
                        self.on_product()
        return torch.cat(parts, dim=1)

    def _multiply(self, v: Tensor) -> Tensor:
        problem, total = self.problem, None
        with contextlib.ExitStack() as stack:
            for index, weight in enumerate(problem.weights):
                part = kept_product(self, index, v)
                part = self._kept_product(index, v) if part is None else part
                if part is None:
                    stack.enter_context(problem.evaluating())
                    part = compiled_product(self, index, v) if problem.compile else None
                if part is None:
                    part = self._eager_product(index, v)
                if total is not None:
                    total.add_(part, alpha=weight)
                else:
                    total = part if weight == 1 else part.mul_(weight)
                if self.on_batch is not None and index + 1 < len(problem.weights):
                    self.on_batch((index + 1) / len(problem.weights))
        assert total is not None
        return total

    def _kept_product(self, index: int, v: Tensor) -> Tensor | None:
        """By a graph that is kept already and runs nothing but derivatives, for which the model need not be isolated;
        None where there is none."""
        kept = self.problem.already_kept(self.key, index)
        if kept is None or not kept.alone:
            return None
        with self.problem.differentiating():
            return self._product_by(kept, v, keep=True)

    def _eager_product(self, index: int, v: Tensor) -> Tensor:
        kept = self.problem.kept(self.key, index, partial(self._graph, index))
        return self._product_by(kept or self._graph(index), v, keep=kept is not None)

    def _product_by(self, graph: Any, v: Tensor, keep: bool) -> Tensor:
        """With a vector, (n,), or with each row of (k, n)."""
        product = torch.empty_like(v)
        places = [Place(x) for x in unflatten(product, self.parameters)]
        self._batch_product(places, graph, unflatten(v, self.parameters), keep)
        return product


def _agree(a: Tensor, b: Tensor) -> bool:
    """Whether two ways to the same product came to the same, up to rounding."""
    return float((a - b).norm()) <= 1e3 * torch.finfo(a.dtype).eps * max(float(a.norm()), float(b.norm()))
