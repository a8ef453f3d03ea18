"""torch.optim.Adagrad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wellcond.preconditioners.reading import Flags, Group, Scalar, State, reads
from wellcond.preconditioners.rule import Columns, Rule


@reads(torch.optim.Adagrad)
class Adagrad(Rule):
    """s ← s + g², and a rate that falls."""

    def entries(self, group: Group | Flags) -> tuple[str, ...]:
        return ("sum",)

    def root(self, state: State, group: Group | Flags) -> Tensor:
        return state["sum"].sqrt()

    def correction(self, group: Group, step: Scalar) -> Scalar:
        return 1 / (1 + (step - 1) * group["lr_decay"])

    def penalty_rate(self, group: Group, step: Scalar) -> Scalar:
        return group["lr"] * self.correction(group, step)

    def scalars(self, group: Group, step: Tensor) -> Columns:
        return [self.penalty_rate(group, step), *self.correct(group, step)]

    def move(self, g: Tensor, state: dict[str, Tensor], s: Sequence[Any], flags: Flags) -> tuple[Tensor, Tensor | None]:
        rate, *numbers = s
        state["sum"].addcmul_(g, g)
        squared: Any = self.squared(state, flags, *numbers)
        return (-rate * g).mul_(squared), squared
