"""A penalty around the steps of an optimizer: what it adds to gradients, and what it does to parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from wellcond.hooks import Attached
from wellcond.penalties import L2, NuclearNorm, Penalty
from wellcond.preconditioners import Reading, reading_for, step_number
from wellcond.steps import spaces
from wellcond.steps.proximal import Moved, ProximalStep, unless_skipped
from wellcond.steps.selection import Selection


class Application(Attached):
    """A penalty in force; it is carried by an optimizer and knows it only while it steps.

    Attributes:
        penalty: R, its strength included.
        space: "intrinsic", "original" or "euclidean".
        via: "prox" or "gradient".
        selection: which parameters.
        check_finite: whether gradients are checked before each step.
        compiled: whether the proximal step is; None for where that pays.
        built_in: whether the optimizer's own step does it, and no hook.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        penalty: Penalty,
        space: str,
        via: str | None,
        selection: Selection,
        *,
        check_finite: bool = False,
        compiled: bool | None = None,
        built_in: bool = False,
    ):
        if not isinstance(penalty, Penalty):
            what = f"class {penalty.__name__}" if isinstance(penalty, type) else type(penalty).__name__
            raise TypeError(f"the penalty is a {what}; give one of wellcond.penalties, such as L1(1e-3)")
        if space not in spaces.SPACES:
            raise ValueError(f"space is {space!r}; give one of {', '.join(map(repr, spaces.SPACES))}")
        if via not in (None, "prox", "gradient"):
            raise ValueError(f'via is {via!r}; give "prox", "gradient" or None')
        for name, given in (("compile", compiled), ("check_finite", check_finite)):
            if given not in (None, True, False):
                raise TypeError(f"{name} is {given!r}; give True or False")
        self.penalty, self.space, self.selection = copy.copy(penalty), space, selection
        self.via: str = via or ("gradient" if penalty.smooth else "prox")
        self.check_finite, self.compiled, self.built_in = check_finite, compiled, built_in
        self._moved: list[Moved] = []
        self._check_optimizer(optimizer)
        self.check_parameters(optimizer)

    @property
    def order(self) -> tuple[int, str]:
        """Gradients first, then proximal steps, then constraints."""
        return (0 if self.via == "gradient" else 2 if self.penalty.strength is None else 1), self.space

    def refuse_beside(self, other: Attached, optimizer: Optimizer) -> None:
        """Refuse another penalty on one parameter where both don't make the penalty that is their sum.

        Raises:
            ValueError: naming the parameter.
        """
        if not isinstance(other, Application):
            return
        ids = {id(p) for p in other.selection.of(optimizer)}
        shared = [p for p in self.selection.of(optimizer) if id(p) in ids]
        if not shared:
            return
        name = self.selection.name(shared[0], optimizer)
        already = f"{name} is under {other.penalty!r} ({other.space}, {other.via}) already"
        if type(self.penalty) is type(other.penalty):
            raise ValueError(f"{already}; set the strength of its handle, or remove() it first")
        if self.via == other.via == "prox":
            # The projection on a box after a convex penalty of single entries is the prox of both.
            constraint = self.penalty.strength is None or other.penalty.strength is None
            both = all(a.penalty.separable and a.penalty.convex for a in (self, other))
            if not (constraint and both and self.space == other.space):
                raise ValueError(
                    f"{already}, and two proximal steps don't make that of the sum; use one penalty that is the sum "
                    "(ElasticNet, SparseGroupL1), or remove() it first"
                )

    def reading(self, optimizer: Optimizer) -> Reading:
        """How to read the optimizer; where P is not needed and not known, a P of 1 from the start.

        Raises:
            TypeError: for an optimizer whose preconditioner is needed and not known.
        """
        try:
            return reading_for(optimizer)
        except TypeError as error:
            if self.space == "euclidean" or (self.space == "original" and self.via == "gradient"):
                return _ANY
            raise TypeError(
                f"{error}. What needs no preconditioner goes with any optimizer: space='euclidean', or "
                "space='original' with via='gradient'"
            ) from None

    def check_parameters(self, optimizer: Optimizer) -> None:
        """Refuse what the penalty can't be on.

        Raises:
            TypeError, ValueError: naming the parameter.
        """
        selected = list(self.selection.of(optimizer))
        for p in selected:
            self._check(p, optimizer)
        if selected and any(group.get("differentiable") for group in optimizer.param_groups):
            raise ValueError("differentiable=True: no gradient goes through a penalty's step; give False")

    def in_loss(self, optimizer: Optimizer) -> Tensor | float:
        """What the penalty added to the gradient is the gradient of."""
        if self.via != "gradient" or self.space != "original":
            return 0.0
        return sum(self.penalty.value(p) for p in self.selection.of(optimizer))

    def add_to_gradient(self, optimizer: Optimizer) -> None:
        """First of all, when the gradients are there. A parameter without one is left alone."""
        moved = [
            Moved(p, group, p.grad)
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and self.selection.holds(p)
        ]
        self._moved = moved
        # What a GradScaler has found it deals with itself, and skips the step.
        if self.check_finite and getattr(optimizer, "found_inf", None) is None:
            self._check_finite(optimizer)
        for m in moved:
            if m.gradient.is_sparse and (self.via == "gradient" or not self.penalty.separable or m.rows() is None):
                raise ValueError(
                    f"{self.selection.name(m.p, optimizer)} has a sparse gradient: only penalties of single entries by "
                    "prox can be on its rows; use a dense gradient (nn.Embedding(sparse=False)) or leave it out"
                )
        if self.via != "gradient" or self.space != "original" or self.penalty.strength == 0:
            return
        scale = getattr(optimizer, "grad_scale", None)
        for m in moved:
            if 0 in m.gradient.stride():  # expanded: it can't be added to
                m.p.grad = m.gradient = m.gradient.clone()
            weight = -1.0 if m.group.get("maximize") else 1.0
            self.penalty.add_gradient(m.gradient, m.p, weight if scale is None else weight * scale.to(m.p.device))

    def before_step(self, optimizer: Optimizer) -> None:
        """After all gradients are made up: what moves p before the step."""
        if self.via != "gradient" or self.space == "original" or self.penalty.strength == 0:
            return
        reading = self.reading(optimizer)
        for m in self._moved:
            rate = reading.penalty_rate(m.group, step_number(optimizer.state.get(m.p, {})) + 1)
            if isinstance(self.penalty, L2):
                self._decay(optimizer, m, rate)
            elif self.space == "intrinsic":
                m.before = m.p.clone()  # P is known only after the step
            else:
                m.p.copy_(unless_skipped(optimizer, m.p - rate * self.penalty.gradient(m.p), m.p))

    def _decay(self, optimizer: Optimizer, m: Moved, rate: Any) -> None:
        """The step of L2: bit for bit AdamW's decay."""
        if isinstance(rate, Tensor) and m.group.get("fused"):
            rate = rate.double()  # as the fused kernel computes it
        factor = 1 - rate * self.penalty.strength
        if getattr(optimizer, "found_inf", None) is None:
            m.p.mul_(factor)
        else:
            m.p.copy_(unless_skipped(optimizer, m.p * factor, m.p))

    def after_step(self, optimizer: Optimizer) -> None:
        """What moves p after the step, with the P that the step used."""
        moved, self._moved = self._moved, []
        if self.penalty.strength == 0:
            return
        reading = self.reading(optimizer)
        adaptive = self.space != "euclidean"
        # An optimizer that skipped its first step has no P, and has moved nothing.
        stepped = [m for m in moved if not adaptive or reading.stepped(optimizer.state.get(m.p, {}))]
        if self.via == "prox":
            ProximalStep(optimizer, reading, self.penalty, self.space).take(stepped, self.compiled)
        for m in stepped:
            if m.before is not None:
                squared = m.squared_scale(optimizer, reading)
                rate = reading.penalty_rate(m.group, step_number(optimizer.state.get(m.p, {})))
                move = spaces.move(self.penalty, self.space, m.before.to(m.precision), squared)
                m.p.copy_(unless_skipped(optimizer, m.p - rate * move, m.p))

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        reading, name = self.reading(optimizer), type(optimizer).__name__
        for group in optimizer.param_groups:
            try:
                reading.penalty_rate(group, 1.0) * 1.0
            except (KeyError, TypeError, ZeroDivisionError) as error:
                raise ValueError(
                    f"the groups of {name} give a penalty no step ({type(error).__name__}: {error}); it needs a number "
                    "lr, and a momentum under 1"
                ) from None
        if self.space == "original" and self.via == "prox" and isinstance(self.penalty, NuclearNorm):
            raise ValueError(
                "NuclearNorm has no proximal step in the original space; use space='euclidean' for low-rank weights"
            )

    def _check(self, p: Tensor, optimizer: Optimizer) -> None:
        name = self.selection.name(p, optimizer)
        if is_lazy(p):
            raise ValueError(f"{name} is not initialized; run the lazy model once on a batch first")
        if p.is_complex() or p.layout != torch.strided:
            what = "complex" if p.is_complex() else f"sparse ({p.layout})"
            raise ValueError(f"{name} is {what}, which has no penalties here; leave it out")
        if p.dtype != torch.float64 and (self.penalty.strength or 0.0) > torch.finfo(torch.float32).max:
            raise ValueError(f"a strength of {self.penalty.strength} is beyond float32, in which {name} is treated")
        like = torch.zeros(1, dtype=p.dtype, device=p.device) if self.penalty.separable else p.detach()
        try:
            with torch.no_grad():
                if like.numel():
                    self.penalty.gradient(like) if self.via == "gradient" else self.penalty.prox(like, 1.0)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None

    def _check_finite(self, optimizer: Optimizer) -> None:
        for m in self._moved:
            values = m.gradient.coalesce().values() if m.gradient.is_sparse else m.gradient
            if not bool(values.isfinite().all()):
                raise FloatingPointError(f"the gradient of {self.selection.name(m.p, optimizer)} has NaN or inf in it")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_moved": []}


class _Any(Reading):
    """An optimizer that is not known, where P is not needed."""

    needs_a_step = False


_ANY = _Any()
