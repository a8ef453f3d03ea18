"""Preconditioners: invertible changes of variables p = Pz."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from wellcond.parameters import flatten


class NotPreconditionedError(ValueError):
    """An optimizer's steps are not along PPᵀ∇L for any P."""


class Preconditioner(ABC):
    """An invertible linear P on lists of tensors in parameter order (theory, section 1).

    Attributes:
        parameters: the parameters it belongs to, in its order.
        rounding: relative accuracy to which P itself is known.
    """

    parameters: Sequence[Tensor]
    rounding: float = 0.0

    @property
    def constant(self) -> bool:
        """Whether P stays what it is; False for one that moves with training."""
        return True

    @property
    def is_identity(self) -> bool:
        """Whether P is known to be 1."""
        return False

    @abstractmethod
    def apply(self, z: Sequence[Tensor]) -> list[Tensor]:
        """P z."""

    @abstractmethod
    def adjoint(self, g: Sequence[Tensor]) -> list[Tensor]:
        """Pᵀ g."""

    @abstractmethod
    def invert(self, p: Sequence[Tensor]) -> list[Tensor]:
        """P⁻¹ p."""

    @abstractmethod
    def over(
        self, parameters: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype | None = None
    ) -> Preconditioner:
        """The same P restricted to these parameters, in their order, for vectors of a dtype.

        Raises:
            ValueError: if P does not cover one of them, naming it.
        """

    def refuse_uncovered(self, parameters: Sequence[Tensor], names: Sequence[str], message: str) -> None:
        """Raise the message, with its {} filled in, for the first parameter that P does not cover."""
        covered = set(map(id, self.parameters))
        for name, p in zip(names, parameters, strict=True):
            if id(p) not in covered:
                raise ValueError(message.format(name))

    def gram(self, g: Sequence[Tensor]) -> list[Tensor]:
        """PPᵀ g, in new tensors."""
        return self.apply(self.adjoint(g))

    def diagonal(self) -> Tensor:
        """The entries P_ii of a diagonal P as one vector, (n,), in the order of `parameters`.

        Raises:
            ValueError: if P is not diagonal.
        """
        raise ValueError(f"a {type(self).__name__} is not diagonal; apply it to the vectors that are asked for")

    def stepped(self) -> None:  # noqa: B027, most have nothing to do
        """An optimizer that P belongs to has taken a step; called by `precondition` and `reparameterize`."""

    def __matmul__(self, other: object) -> Preconditioner:
        """P₁P₂ (theory, section 5.4): z = P₂⁻¹P₁⁻¹p."""
        if not isinstance(other, Preconditioner):
            return NotImplemented
        return Composed(self, other)


class DiagonalPreconditioner(Preconditioner):
    """P = diag(scales), elementwise.

    Args:
        parameters: what it belongs to.
        scales: a tensor for each, of its shape (or expandable to it), positive.
        rounding: relative accuracy of the scales.

    >>> DiagonalPreconditioner([torch.ones(2), torch.ones(1)], [torch.tensor(3.0), torch.tensor([5.0])]).diagonal()
    tensor([3., 3., 5.])
    """

    def __init__(self, parameters: Sequence[Tensor], scales: Sequence[Tensor], rounding: float = 0.0):
        self.parameters, self.scales, self.rounding = list(parameters), list(scales), rounding
        if len(self.scales) != len(self.parameters):
            raise ValueError(
                f"got {len(self.scales)} scales for {len(self.parameters)} parameters; give a tensor for each"
            )
        for p, s in zip(self.parameters, self.scales, strict=True):
            sizes = zip(reversed(s.shape), reversed(p.shape), strict=False)
            if s.ndim > p.ndim or any(n not in (1, d) for n, d in sizes):
                raise ValueError(
                    f"got scales of shape {tuple(s.shape)} for a parameter of shape {tuple(p.shape)}; give one for "
                    "each entry"
                )
            if not bool(((s > 0) & s.isfinite()).all()):
                raise ValueError(f"scales of a parameter of shape {tuple(p.shape)} are not all positive and finite")

    def apply(self, z: Sequence[Tensor]) -> list[Tensor]:
        return [s * x for s, x in zip(self.scales, z, strict=True)]

    def adjoint(self, g: Sequence[Tensor]) -> list[Tensor]:
        return self.apply(g)

    def invert(self, p: Sequence[Tensor]) -> list[Tensor]:
        return [x / s for s, x in zip(self.scales, p, strict=True)]

    def gram(self, g: Sequence[Tensor]) -> list[Tensor]:
        return [y.mul_(s) for s, y in zip(self.scales, self.apply(g), strict=True)]

    def diagonal(self) -> Tensor:
        return flatten([s.expand(p.shape) for p, s in zip(self.parameters, self.scales, strict=True)])

    def over(
        self, parameters: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype | None = None
    ) -> DiagonalPreconditioner:
        message = "the preconditioner does not cover {}: was it read off an optimizer over other parameters?"
        self.refuse_uncovered(parameters, names, message)
        scales = dict(zip(map(id, self.parameters), self.scales, strict=True))
        return DiagonalPreconditioner(parameters, [scales[id(p)].to(dtype) for p in parameters], self.rounding)

    @property
    def is_identity(self) -> bool:
        """Whether every scale is 1."""
        return all(bool((s == 1).all()) for s in self.scales)

    def __matmul__(self, other: object) -> Preconditioner:
        if not isinstance(other, DiagonalPreconditioner):
            return super().__matmul__(other)
        parameters = {id(p): p for P in (self, other) for p in P.parameters}
        scales = dict(zip(map(id, self.parameters), self.scales, strict=True))
        for p, s in zip(other.parameters, other.scales, strict=True):
            scales[id(p)] = scales[id(p)] * s if id(p) in scales else s
        return DiagonalPreconditioner(
            list(parameters.values()), [scales[i] for i in parameters], self.rounding + other.rounding
        )


class Composed(Preconditioner):
    """P = P₁P₂, also written P1 @ P2 (which makes one `DiagonalPreconditioner` of two).

    It belongs to the parameters of both; one that a factor does not have is left alone by that factor.

    >>> w = torch.ones(2)
    >>> twice = DiagonalPreconditioner([w], [torch.tensor(2.0)])
    >>> Composed(twice, DiagonalPreconditioner([w], [torch.tensor([1.0, 5.0])])).apply([w])
    [tensor([ 2., 10.])]
    """

    def __init__(self, P1: Preconditioner, P2: Preconditioner, parameters: Sequence[Tensor] | None = None):
        self.factors = P1, P2
        given = parameters if parameters is not None else [p for P in self.factors for p in P.parameters]
        self.parameters = list({id(p): p for p in given}.values())
        position = {id(p): i for i, p in enumerate(self.parameters)}
        self._places = [[position[id(p)] for p in P.parameters] for P in self.factors]
        self.rounding = P1.rounding + P2.rounding

    def apply(self, z: Sequence[Tensor]) -> list[Tensor]:
        return self._by(0, "apply", self._by(1, "apply", z))

    def adjoint(self, g: Sequence[Tensor]) -> list[Tensor]:
        return self._by(1, "adjoint", self._by(0, "adjoint", g))

    def invert(self, p: Sequence[Tensor]) -> list[Tensor]:
        return self._by(1, "invert", self._by(0, "invert", p))

    def gram(self, g: Sequence[Tensor]) -> list[Tensor]:
        """P₁(P₂P₂ᵀ)P₁ᵀ g."""
        return self._by(0, "apply", self._by(1, "gram", self._by(0, "adjoint", g)))

    def _by(self, factor: int, how: str, x: Sequence[Tensor]) -> list[Tensor]:
        """One factor on its own parameters among all."""
        result, places = list(x), self._places[factor]
        changed = getattr(self.factors[factor], how)([result[i] for i in places])
        for i, new in zip(places, changed, strict=True):
            result[i] = new
        return result

    def over(self, parameters: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype | None = None) -> Composed:
        self.refuse_uncovered(parameters, names, "neither of the composed preconditioners covers {}; leave it out")
        factors: list[Preconditioner] = []
        for P in self.factors:
            has = {id(p) for p in P.parameters}
            chosen = [(p, name) for p, name in zip(parameters, names, strict=True) if id(p) in has]
            factors.append(P.over([p for p, _ in chosen], [name for _, name in chosen], dtype))
        return Composed(factors[0], factors[1], parameters)

    @property
    def constant(self) -> bool:
        return all(P.constant for P in self.factors)

    @property
    def is_identity(self) -> bool:
        return all(P.is_identity for P in self.factors)

    def stepped(self) -> None:
        for P in self.factors:
            P.stepped()
