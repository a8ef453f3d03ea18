"""A penalty inside the optimizer's step: what `Application` does around it, as a part of the same pass over memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wellcond.one_pass import Scalar, where_positive
from wellcond.penalties import L2, Penalty
from wellcond.preconditioners import Rule
from wellcond.steps import spaces
from wellcond.steps.by_rule import Decay, Inside, Move
from wellcond.steps.penalty_application import Application


class PenaltyInside(Inside):
    """A penalty on some of the parameters.

    The others go through the same function, with held = 0: so one compiled kernel does them all, whatever the penalty.
    """

    def __init__(self, application: Application):
        penalty, space, via = application.penalty, application.space, application.via
        self._strength, self._holds = penalty.strength or 0.0, application.selection.holds
        self.key = penalty.key, space, via
        self.around = functools.partial(_around, penalty, space, via)

    def columns(self, rule: Rule, group: Mapping[str, Any], step: Tensor, params: Sequence[Tensor]) -> list[Scalar]:
        held = torch.tensor([float(self._holds(p)) for p in params])
        return [rule.penalty_rate(group, step), self._strength, held]


def _around(
    penalty: Penalty,
    space: str,
    via: str,
    p: Tensor,
    g: Tensor,
    tensors: Sequence[Tensor],
    s: Sequence[Any],
    decayed: Decay,
    move: Move,
) -> Tensor:
    rate, strength, held = s
    R = penalty if penalty.strength is None else penalty.with_strength(strength)
    by_gradient = via == "gradient"
    late = by_gradient and space == "intrinsic" and not isinstance(R, L2)  # P is known only after the step
    before = p.clone() if late else p
    if by_gradient and space == "original":
        g = where_positive(held, g + R.gradient(p), g)
    elif by_gradient and isinstance(R, L2):
        p = p.mul_(1 - rate * strength * held)
    elif by_gradient and not late:
        p = where_positive(held, p - rate * R.gradient(p), p)
    p, g = decayed(p, g)
    d, squared = move(g)
    p = p.add_(d)
    if not by_gradient:
        return where_positive(held, spaces.prox(R, space, p, rate, squared), p)
    if late:
        return where_positive(held, p - rate * spaces.move(R, space, before, squared), p)
    return p
