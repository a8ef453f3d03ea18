"""A given preconditioner with any optimizer: precondition its gradient, or run it in z (theory, section 5.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.hooks import Handle, attach, parameters_of
from wellcond.preconditioners import Preconditioner, unwrapped_optimizer
from wellcond.steps.change_of_variables import GivenP, Precondition, Reparameterize
from wellcond.steps.coordinates import fresh


def precondition(optimizer: Any, P: Preconditioner, *, compile: bool | None = None) -> Preconditioning:
    """Multiply the gradient by PPᵀ before each step of an optimizer: the way to use a P that moves.

    The optimizer's buffers stay in p, so P may change at every step. Parameters that P does not cover, or that have no
    gradient, are left alone, and P is then the one of the others (`P.over`). After the step `.grad` is what it was
    before: a second step without a new backward pass does not precondition twice. It survives deepcopy and pickling
    with the optimizer, and is not in its `state_dict`: call it again after building a new optimizer.

    Gradient penalties in original space (`regularize`) are added before PPᵀ, so that the objective is L + τR; every
    other penalty sees the optimizer's own P alone.

    Args:
        optimizer: any torch optimizer but LBFGS (or a wrapper that keeps one as `.optimizer`).
        P: any preconditioner over some of its parameters, such as `BatchNormPreconditioner(model)`.
        compile: whether steps of torch's SGD, Adam, AdamW, RMSprop and Adagrad on the CPU, under a
            `DiagonalPreconditioner` with a scale for each entry, are compiled (once, some 10 s) and then take one pass
            over memory; by default from when the run is long enough for that, some 10¹⁰ entries times steps. Rounding
            changes with it: give True or False where runs are to be compared bit for bit.

    Returns:
        A handle with `remove()`.

    Raises:
        TypeError: for what is no preconditioner, or an optimizer that can't be preconditioned.
        ValueError: where P has none of the optimizer's parameters, is not finite, or does not fit them; where the
            optimizer is under another `precondition` or `reparameterize`.

    Source: theory, section 5.4.

    >>> import torch, wellcond as wc
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.1)
    >>> handle = precondition(optimizer, wc.DiagonalPreconditioner([w], [torch.tensor([1.0, 3.0])]))
    >>> w.grad = torch.tensor([1.0, 1.0])
    >>> optimizer.step()
    >>> w.data, w.grad
    (tensor([0.9000, 0.1000]), tensor([1., 1.]))
    """
    optimizer = unwrapped_optimizer(optimizer)
    application = Precondition(optimizer, P, compile)
    attach(optimizer, application)
    return Preconditioning(optimizer, application)


def reparameterize(optimizer: Any, P: Preconditioner, *, compile: bool | None = None) -> Reparameterization:
    """Run an optimizer on z ↦ L(Pz) while the model keeps p = Pz.

    Whatever the optimizer does, momentum, second moments, weight decay, clamping, it does in z; so do the penalties of
    `regularize`, in whichever order the two are called: their space="original" means the optimizer's parameters, which
    are z, and "intrinsic" those that the optimizer's own scaling makes of z. For a constant P the trajectory is that
    of the same optimizer built over z. Where z did not change p does not, bit for bit; for a `DiagonalPreconditioner` P
    a z of zero is a p of zero.

    Each step recomputes z = P⁻¹p. A P that moves is allowed, but the optimizer's state is not transported to the new
    coordinates: change it rarely, or use `precondition`. Parameters that P does not cover, or that have no gradient,
    are left alone, and P is then the one of the others (`P.over`). After the step `.grad` is what it was before.
    Closures, LBFGS's too, are evaluated at p. It survives deepcopy and pickling with the optimizer, and is not in its
    `state_dict`: to resume, call it again on the new optimizer; nothing else has to be saved but P.

    Args:
        optimizer: any torch optimizer (or a wrapper that keeps one as `.optimizer`).
        P: any preconditioner over some of its parameters; `P1 @ P2` composes two.
        compile: as `precondition`.

    Returns:
        A handle with `z()` and `remove()`.

    Raises:
        TypeError, ValueError: as `precondition`; for LBFGS also where P moves.

    Source: theory, section 5.4.

    >>> import torch, wellcond as wc
    >>> w = torch.nn.Parameter(torch.tensor([6.0]))
    >>> optimizer = torch.optim.Adam([w], lr=0.1)
    >>> handle = reparameterize(optimizer, wc.DiagonalPreconditioner([w], [torch.tensor([3.0])]))
    >>> w.grad = torch.tensor([1.0])
    >>> optimizer.step()  # Adam's first step is lr in each of its coordinates: 0.1 in z, 0.3 in p
    >>> w.data, handle.z()
    (tensor([5.7000]), [tensor([1.9000])])
    """
    optimizer = unwrapped_optimizer(optimizer)
    application = Reparameterize(optimizer, P, compile)
    attach(optimizer, application)
    return Reparameterization(optimizer, application)


class _GivenPHandle(Handle):
    application: GivenP
    _in_words: str

    def __init__(self, optimizer: Optimizer, application: GivenP):
        super().__init__(optimizer, application)
        self.P = application.P

    def __repr__(self) -> str:
        covered, total = len(self.application.covered(self.optimizer)), len(parameters_of(self.optimizer))
        what = self._in_words.format(optimizer=type(self.optimizer).__name__, P=type(self.P).__name__)
        return f"{self._removed}{what}\n  on {covered} of {total} parameters"


class Preconditioning(_GivenPHandle):
    """PPᵀ in force on an optimizer's gradients: what `precondition` returns.

    Attributes:
        optimizer: the optimizer.
        P: the preconditioner.
    """

    _in_words = "the gradient times PPᵀ before each step of {optimizer}, P a {P}"


class Reparameterization(_GivenPHandle):
    """An optimizer that runs in z: what `reparameterize` returns.

    Attributes:
        optimizer: the optimizer.
        P: the preconditioner.
    """

    _in_words = "{optimizer} runs in z, p = Pz, P a {P}"

    @torch.no_grad()
    def z(self) -> list[Tensor]:
        """P⁻¹p of the parameters that P covers, in the optimizer's order."""
        parameters = self.application.covered(self.optimizer)
        z = self.application.restricted(self.optimizer, parameters).invert(parameters)
        return fresh(parameters, parameters, z)
