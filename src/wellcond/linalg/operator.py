"""Symmetric linear operators, known by their product with a vector."""

from __future__ import annotations

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from wellcond.linalg.estimate import CONFIDENCE, Estimate
from wellcond.linalg.randomized import DiagonalEstimate, estimate_diagonal, estimate_trace
from wellcond.linalg.vectors import finite

EVALUATION = 32.0
"""Roundings, relative to the largest eigenvalue, by which a matrix evaluated in floating point may differ from the
exact one and still be symmetric: networks on raw inputs in float32 came to 14."""

DENSE_LIMIT = 2000
"""Up to this size a matrix is formed where that gives an exact answer."""


class SymmetricOperator(ABC):
    """A real symmetric n × n matrix that is never formed: a subclass says how it multiplies a vector.

    Attributes:
        size: n.
        dtype, device: of the vectors that it takes and returns.
        positive_semidefinite: whether its eigenvalues are known to be ≥ 0.
        rounding: relative accuracy to which the matrix itself is known, beyond the rounding of `dtype`.
        damping: δ, the multiple of the identity that is added to what the subclass multiplies by.
        products: matrix-vector products computed so far.
        on_product: called after each product, for a progress bar.
    """

    positive_semidefinite: bool = False
    rounding: float = 0.0
    damping: float = 0.0

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, device
        self.products = 0
        self.on_product: Callable[[], None] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return (self.size, self.size)

    @abstractmethod
    def _multiply(self, v: Tensor) -> Tensor:
        """The product with one vector, (n,) → (n,), without the damping."""

    def gradient(self) -> Tensor | None:
        """The gradient that belongs to this curvature, (n,), where there is one."""
        return None

    def semidefinite(self) -> SymmetricOperator | None:
        """The positive semidefinite curvature that stands for this one, where there is one."""
        return self if self.positive_semidefinite else None

    def keeping(self, products: int) -> contextlib.AbstractContextManager[object]:
        """Inside, what `products` products have in common may be kept between them."""
        return contextlib.nullcontext()

    def matvec(self, v: Tensor) -> Tensor:
        """The product with one vector.

        Args:
            v: (n,), of this operator's dtype and device.

        Raises:
            ValueError: if `v` has another shape, dtype or device.
        """
        if not isinstance(v, Tensor):
            raise ValueError(f"got a {type(v).__name__}; this operator takes a tensor of shape ({self.size},)")
        if v.shape != (self.size,) or v.dtype != self.dtype or v.device != self.device:
            raise ValueError(
                f"got a vector of shape {tuple(v.shape)}, {v.dtype} on {v.device}; this operator takes shape "
                f"({self.size},), {self.dtype} on {self.device}"
            )
        product = self._multiply(v)
        if self.damping:
            product = torch.add(product, v, alpha=self.damping)
        self.count()
        return product

    def count(self, products: int = 1) -> None:
        """So many more products were computed."""
        for _ in range(products):
            self.products += 1
            if self.on_product is not None:
                self.on_product()

    def matmat(self, V: Tensor) -> Tensor:
        """The product with each column of V, (n, k) → (n, k)."""
        if not isinstance(V, Tensor) or V.ndim != 2:
            what = f"a tensor of shape {tuple(V.shape)}" if isinstance(V, Tensor) else f"a {type(V).__name__}"
            raise ValueError(f"got {what}; give a tensor of shape ({self.size},) or ({self.size}, k)")
        if not V.shape[1]:
            return torch.zeros_like(V)
        with self.keeping(V.shape[1]):
            return self._columns(V)

    def _columns(self, V: Tensor) -> Tensor:
        """The product with each of the one or more columns of V, (n, k) → (n, k)."""
        return torch.stack([self.matvec(column.contiguous()) for column in V.T], dim=1)

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.matvec(x) if isinstance(x, Tensor) and x.ndim == 1 else self.matmat(x)

    def damped(self, damping: float) -> Self:
        """This matrix with δ times the identity added; `operator + δ` is the same.

        Args:
            damping: δ, finite; negative too.
        """
        if not math.isfinite(damping):
            raise ValueError(f"got damping={damping}; it is a finite number")
        twin = copy.copy(self)
        twin.damping, twin.products, twin.on_product = self.damping + damping, 0, None
        # What a negative shift does to a definite matrix is not known.
        twin.positive_semidefinite = self.positive_semidefinite and damping >= 0
        return twin

    def __add__(self, damping: object) -> Self:
        return self.damped(float(damping)) if isinstance(damping, int | float) else NotImplemented

    __radd__ = __add__

    def dense(self) -> Tensor:
        """The matrix itself, (n, n), by n products; symmetric up to rounding, as the products left it."""
        return self.matmat(torch.eye(self.size, dtype=self.dtype, device=self.device))

    def _with_damping(self, matrix: Tensor) -> Tensor:
        if not self.damping:
            return matrix
        return matrix + self.damping * torch.eye(self.size, dtype=self.dtype, device=self.device)

    def diagonal(self, products: int | None = None, *, seed: int = 0) -> DiagonalEstimate:
        """The diagonal: read off the matrix where that is small, else estimated.

        Args:
            products: matrix-vector products to spend on an estimate; by default, the matrix is formed up to size
                2,000, and 120 products are spent above. With as many as n, the matrix is formed too.
            seed: of the random directions.
        """
        products = self._affordable(products)
        if products >= self.size:
            values = finite(self.dense().diagonal().clone())
            return DiagonalEstimate(values, torch.zeros_like(values), self.size, "exact")
        with self.keeping(products):
            estimate = estimate_diagonal(self.undamped(), products, seed)
        return replace(estimate, values=estimate.values + self.damping)

    def trace(self, products: int | None = None, *, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
        """The trace: of the matrix where that is small, else estimated with an interval.

        Args:
            products: matrix-vector products to spend on an estimate; by default, the matrix is formed up to size
                2,000, and 120 products are spent above. With as many as n, the matrix is formed too.
            seed: of the random directions.
            confidence: probability of the interval, by Student's t.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"got confidence={confidence}; it is above 0 and below 1")
        products = self._affordable(products)
        if products >= self.size:
            diagonal = finite(self.dense().diagonal()).double()
            error = EVALUATION * torch.finfo(self.dtype).eps * math.sqrt(self.size) * float(diagonal.abs().max())
            value = float(diagonal.sum())
            return Estimate(value, value - error, value + error, f"exact: the whole matrix, {self.size} products")
        with self.keeping(products):
            estimate = estimate_trace(self.undamped(), products, seed, confidence)
        added = self.damping * self.size
        return replace(estimate, value=estimate.value + added, low=estimate.low + added, high=estimate.high + added)

    def _affordable(self, products: int | None) -> int:
        if products is None:
            return self.size if self.size <= DENSE_LIMIT else 120
        return products

    def undamped(self) -> Self:
        """This operator without the damping, which is known: sampled with the rest it would only be noise. Its products
        count as this one's."""
        twin = self.damped(-self.damping)
        twin.on_product = self.count
        return twin

    def to_scipy(self) -> Any:
        """This operator as a `scipy.sparse.linalg.LinearOperator` on numpy vectors (needs scipy)."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        def multiply(v: Any) -> Any:
            if np.iscomplexobj(v):
                raise TypeError("got complex vectors; this operator is real")
            x = torch.as_tensor(np.asarray(v), dtype=self.dtype, device=self.device)
            return (self @ x).cpu().numpy()

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        by = dict.fromkeys(("matvec", "rmatvec", "matmat", "rmatmat"), multiply)
        return LinearOperator(self.shape, **by, dtype=dtype)


def check_operator(operator: object) -> None:
    """Refuse what is no operator, with what makes one.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(operator, SymmetricOperator):
        raise TypeError(
            f"got a {type(operator).__name__}; give an operator, such as wc.Hessian(problem) or "
            "wellcond.linalg.MatrixOperator(matrix)"
        )


class MatrixOperator(SymmetricOperator):
    """A dense symmetric matrix as an operator.

    >>> import torch
    >>> A = MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    >>> A @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    >>> (A + 0.5).dense()
    tensor([[2.5000, 1.0000],
            [1.0000, 3.5000]])
    """

    def __init__(self, matrix: Tensor, *, positive_semidefinite: bool = False, gradient: Tensor | None = None):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"got a matrix of shape {tuple(matrix.shape)}; a symmetric one is square")
        super().__init__(matrix.shape[0], matrix.dtype, matrix.device)
        self.matrix, self.positive_semidefinite, self._gradient = matrix, positive_semidefinite, gradient

    def _multiply(self, v: Tensor) -> Tensor:
        return self.matrix @ v

    def gradient(self) -> Tensor | None:
        return self._gradient

    def dense(self) -> Tensor:
        return self._with_damping(self.matrix.clone())
