"""Proximal steps after an optimizer's own, with the P that it used; several parameters in one pass over memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.one_pass import Passes, Scalar, Update, where_positive
from wellcond.penalties import Penalty
from wellcond.preconditioners import Reading, state_of, step_number, step_numbers
from wellcond.steps import spaces

Group = Mapping[str, Any]


@dataclass
class Moved:
    """A parameter that the step moves, and what is remembered of it until after the step."""

    p: Tensor
    group: Group
    gradient: Any
    before: Tensor | None = None  # p before the step, where that is needed

    @property
    def precision(self) -> torch.dtype:
        return torch.float64 if self.p.dtype == torch.float64 else torch.float32

    def rows(self) -> Tensor | None:
        """The rows that a sparse gradient has; None for all, or where it has no rows."""
        if not self.gradient.is_sparse or self.gradient.sparse_dim() != 1:
            return None
        return self.gradient.coalesce().indices()[0]

    def squared_scale(self, optimizer: Optimizer, reading: Reading, rows: Tensor | None = None) -> Tensor | None:
        """P_ii² in working precision, of some rows."""
        state = state_of(optimizer, self.p, reading, self.precision)
        if rows is not None:
            state = {key: v[rows] if _alike(v, self.p) else v for key, v in state.items()}
        return reading.squared_scale(state, self.group)


class ProximalStep:
    """The proximal step of a penalty.

    Args:
        optimizer: which has taken its step.
        reading: how to read it.
        penalty: R.
        space: of R.
    """

    def __init__(self, optimizer: Optimizer, reading: Reading, penalty: Penalty, space: str):
        self.optimizer, self.reading, self.penalty, self.space = optimizer, reading, penalty, space
        self._adaptive = space != "euclidean"

    def take(self, moved: Sequence[Moved], compiled: bool | None) -> None:
        """Take it of these parameters: of one at a time, or of many together where the penalty is of single entries.

        Args:
            moved: which.
            compiled: whether those together are; None for where that pays.
        """
        passes = Passes(compiled)
        together: dict[int, list[Moved]] = {}
        for m in moved:
            known = not self._adaptive or self.reading.flags(m.group) is not None
            if known and self.penalty.key is not None and not m.gradient.is_sparse:
                together.setdefault(id(m.group), []).append(m)
            else:
                self._alone(m)
        for members in together.values():
            self._add(passes, members)
        passes.run()

    def _alone(self, m: Moved) -> None:
        """The proximal step of one tensor, or of the rows that its sparse gradient has."""
        rate = self.reading.penalty_rate(m.group, step_number(self.optimizer.state.get(m.p, {})))
        if m.p.numel() == 0 or self._is_nothing(rate):
            return
        rows = m.rows()
        squared = m.squared_scale(self.optimizer, self.reading, rows) if self._adaptive else None
        u = m.p.detach() if rows is None else m.p.detach()[rows]
        new = spaces.prox(self.penalty, self.space, u.to(m.precision), rate, squared).to(u.dtype)
        new = unless_skipped(self.optimizer, new, u)
        if rows is None:
            m.p.copy_(new)
        else:
            m.p.index_copy_(0, rows, new)

    def _add(self, passes: Passes, members: Sequence[Moved]) -> None:
        """Those of one parameter group to the passes."""
        group, reading = members[0].group, self.reading
        states = [self.optimizer.state.get(m.p, {}) for m in members]
        step = step_numbers(states)
        rate = reading.penalty_rate(group, step)
        if self._is_nothing(rate):
            return
        entries = reading.entries(group) if self._adaptive else ()
        flags = (reading.flags(group) or {}) if entries else {}
        numbers = reading.correct(group, step) if entries else (1.0, 0.0)
        skip = getattr(self.optimizer, "found_inf", None)
        passes.add(
            (self.penalty.key, self.space, type(reading), tuple(flags.items()), entries),
            _update(self.penalty, self.space, reading, flags, entries),
            [[m.p.detach(), *(state[e] for e in entries)] for m, state in zip(members, states, strict=True)],
            [rate, *numbers, self.penalty.strength or 0.0, 0.0 if skip is None else skip],
        )

    def _is_nothing(self, rate: Any) -> bool:
        """Whether a step of this size moves nothing; a constraint has no size."""
        return not isinstance(rate, Tensor) and rate == 0 and self.penalty.strength is not None


def unless_skipped(optimizer: Optimizer, new: Tensor, old: Tensor) -> Tensor:
    """`new`, or `old` where a GradScaler has found inf and the fused step did nothing; nobody waits to know."""
    found = getattr(optimizer, "found_inf", None)
    return new if found is None else torch.where(found.to(old.device) > 0, old, new)


def _update(
    penalty: Penalty, space: str, reading: Reading, flags: Mapping[str, bool], entries: Sequence[str]
) -> Update:
    """The proximal step as an elementwise function of (p, *entries of the state)."""

    def update(tensors: Sequence[Tensor], s: Sequence[Scalar]) -> list[Tensor]:
        p, *values = tensors
        rate, factor, eps, strength, skip = s
        state = dict(zip(entries, values, strict=True))
        squared = reading.squared(state, flags, factor, eps) if entries else None
        R = penalty if penalty.strength is None else penalty.with_strength(strength)
        return [where_positive(skip, p, spaces.prox(R, space, p, rate, squared))]

    return update


def _alike(v: Any, p: Tensor) -> bool:
    return isinstance(v, Tensor) and v.layout == torch.strided and v.shape == p.shape
