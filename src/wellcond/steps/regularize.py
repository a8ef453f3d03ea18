"""`wc.regularize`: a penalty on the right parameters of any optimizer (theory, section 4)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from wellcond import hooks
from wellcond.hooks import carried_by
from wellcond.penalties import Penalty
from wellcond.preconditioners import unwrapped_optimizer
from wellcond.steps.penalty_application import Application
from wellcond.steps.regularization import Regularization
from wellcond.steps.selection import Params, Selection


def regularize(
    optimizer: Any,
    penalty: Penalty,
    space: str = "intrinsic",
    via: str | None = None,
    params: Params = None,
    model: nn.Module | None = None,
    *,
    check_finite: bool = False,
    compile: bool | None = None,
) -> Regularization:
    """Put a penalty on parameters of an optimizer, through its step hooks; nothing else in the training loop changes.

    The optimizer stays what it is, and may not have taken a step yet. The penalty survives deepcopy and pickling with
    it; it is not in its `state_dict`: after loading a checkpoint into a new optimizer, call `regularize` again, before
    or after. Call it again, too, for another penalty on other parameters.

    Args:
        optimizer: any torch optimizer (or a wrapper that keeps one as `.optimizer`); for "intrinsic", and "original" by
            prox, one that `preconditioner_of` reads.
        penalty: one of `wellcond.penalties`. Its strength per unit of the loss means another thing in each space: see
            docs/l1-with-adam.md.
        space: "intrinsic" (R of z = P⁻¹p: what AdamW is for L2), "original" (R of p) or "euclidean" (the penalty's step
            ignores P; it minimizes neither).
        via: "prox", a proximal step after each step, which makes exact zeros; "gradient", the penalty's gradient: in
            original space it is added to `.grad`, which holds the sum afterwards, otherwise it is a decay of its own.
            By default "gradient" for smooth penalties and "prox" for the others.
        params: parameters; names or patterns of names, with `model`; a predicate; "all". By default tensors of two or
            more dimensions. A predicate and the default also hold for groups that are added later.
        model: gives the parameters names, and leaves out by default: biases, the parameters of normalization layers and
            embeddings, and weights under weight or spectral norm (whose size the loss doesn't see, so that a penalty
            takes it to zero).
        check_finite: raise FloatingPointError naming the parameter whose gradient has NaN or inf in it, before the step
            (waits for a GPU each step).
        compile: compile the proximal step (once, some 10 s); by default where it is on a million entries or more.

    Returns:
        A handle: `strength`, `value()`, `optimality(problem)`, `sparsity()`, `remove()`.

    Raises:
        TypeError: for an optimizer without a known preconditioner in a space that needs it, or a penalty that has no
            gradient or no proximal step to go by.
        ValueError: for parameters that are not the optimizer's, groups that don't cover one, or parameters that are
            under a conflicting penalty already.

    Source: theory, section 4; steps of 4.7.

    >>> import torch, wellcond as wc
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    >>> handle = wc.regularize(optimizer, wc.penalties.L1(0.3))
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     (model(torch.eye(3)) - torch.tensor([[2.0], [0.0], [0.0]])).square().mean().backward()
    ...     _ = optimizer.step()
    >>> (model.weight == 0).tolist()
    [[False, True, True]]
    """
    optimizer = unwrapped_optimizer(optimizer)
    selection = Selection(optimizer, params, model)
    application = Application(optimizer, penalty, space, via, selection, check_finite=check_finite, compiled=compile)
    attach(optimizer, application, stacklevel=3)
    return Regularization(optimizer, application)


def attach(optimizer: Optimizer, application: Application, stacklevel: int) -> None:
    """Put it in force; warns the caller `stacklevel` above of embeddings under a dense adaptive optimizer.

    Raises:
        ValueError: if a parameter is under a conflicting penalty already.
    """
    hooks.attach(optimizer, application)
    _warn_of_embeddings(optimizer, application, stacklevel + 1)


def regularizations_of(optimizer: Any) -> list[Regularization]:
    """Handles of all penalties in force on an optimizer, also on a copy of one."""
    optimizer = unwrapped_optimizer(optimizer)
    return [Regularization(optimizer, a) for a in carried_by(optimizer) if isinstance(a, Application)]


def _warn_of_embeddings(optimizer: Optimizer, new: Application, stacklevel: int) -> None:
    held = [p for p in new.selection.embeddings if new.selection.holds(p)]
    rows_of_the_batch = isinstance(optimizer, torch.optim.SparseAdam)
    if held and new.via == "prox" and not rows_of_the_batch and new.reading(optimizer).needs_a_step:
        warnings.warn(
            f"{new.selection.name(held[0], optimizer)} is an embedding: rows that are not in the batch are shrunk at "
            "every step too, and those that are rarely used become zero; with nn.Embedding(sparse=True) and SparseAdam "
            "the penalty acts on the rows of the batch only",
            stacklevel=stacklevel,
        )
