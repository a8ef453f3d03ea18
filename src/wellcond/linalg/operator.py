"""Symmetric linear operators, known by their product with a vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NOT_FINITE = (
    "a product with the curvature is not finite: the loss has no second derivative at these parameters (for example √ "
    "or a norm at 0), or it overflows"
)


class SymmetricOperator(ABC):
    """A real symmetric n × n matrix that is never formed: a subclass says how it multiplies a vector.

    Attributes:
        size: n.
        dtype, device: of the vectors that it takes and returns.
        positive_semidefinite: whether its eigenvalues are known to be ≥ 0.
        rounding: relative accuracy to which the matrix itself is known, beyond the rounding of `dtype`.
        products: matrix-vector products computed so far.
        on_product: called after each product, for a progress bar.
    """

    positive_semidefinite: bool = False
    rounding: float = 0.0

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
        """The product with one vector, (n,) → (n,)."""

    def gradient(self) -> Tensor | None:
        """The gradient that belongs to this curvature, (n,), where there is one."""
        return None

    def semidefinite(self) -> SymmetricOperator | None:
        """The positive semidefinite curvature that stands for this one, where there is one."""
        return self if self.positive_semidefinite else None

    def matvec(self, v: Tensor) -> Tensor:
        """The product with one vector.

        Args:
            v: (n,), of this operator's dtype and device.

        Raises:
            ValueError: if `v` has another shape, dtype or device.
        """
        if v.shape != (self.size,) or v.dtype != self.dtype or v.device != self.device:
            raise ValueError(
                f"got a vector of shape {tuple(v.shape)}, {v.dtype} on {v.device}; this operator takes shape "
                f"({self.size},), {self.dtype} on {self.device}"
            )
        product = self._multiply(v)
        self.products += 1
        if self.on_product is not None:
            self.on_product()
        return product

    def matmat(self, V: Tensor) -> Tensor:
        """The product with each column of V, (n, k) → (n, k)."""
        return torch.stack([self.matvec(column.contiguous()) for column in V.T], dim=1)

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.matvec(x) if x.ndim == 1 else self.matmat(x)

    def dense(self) -> Tensor:
        """The matrix itself, (n, n), by n products; symmetric up to rounding, as the products left it."""
        return self.matmat(torch.eye(self.size, dtype=self.dtype, device=self.device))

    def to_scipy(self) -> Any:
        """This operator as a `scipy.sparse.linalg.LinearOperator` on numpy vectors (needs scipy)."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        def multiply(v: Any) -> Any:
            x = torch.as_tensor(np.asarray(v).reshape(-1), dtype=self.dtype, device=self.device)
            return self.matvec(x).cpu().numpy()

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator(shape=self.shape, matvec=multiply, rmatvec=multiply, dtype=dtype)


class MatrixOperator(SymmetricOperator):
    """A dense symmetric matrix as an operator.

    >>> import torch
    >>> A = MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    >>> A @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
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
        return self.matrix
