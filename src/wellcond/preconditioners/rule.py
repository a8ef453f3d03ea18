"""A reading that also says how to take the optimizer's step, elementwise: so more can be compiled into it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wellcond.preconditioners.reading import Flags, Group, Reading, Scalar, step_numbers
from wellcond.private_torch import foreach

# A row's own number, or one for each row of many.
Columns = list[Scalar]


class Rule(Reading):
    """The description of an optimizer whose step is p ← (1 − lr·τ)p + d, d a function of gradient and state.

    It follows the order of torch's single-tensor loops. Every number is a scalar argument, so that a schedule or
    another group compiles nothing again; only `flags` are decided while the step is traced. A weight decay is left to
    the caller, who knows of which parameters it is.
    """

    translates = True

    def states(self, group: Group) -> tuple[str, ...]:
        """The entries of a parameter's state that have its shape."""
        return self.entries(group)

    def flags(self, group: Group) -> Flags:
        """What `root` and `move` ask of the group, as yes or no."""
        return {}

    def count(self, params: Sequence[Tensor], states: Sequence[dict[str, Any]], group: Group) -> Tensor:
        """Count the step: which one it is for every parameter, from 1, of shape (n,)."""
        steps = [state["step"] for state in states]
        foreach("add_", steps, torch.ones((), device=steps[0].device), alpha=1.0)  # a fourth of the time of a number
        return step_numbers(states)

    @abstractmethod
    def scalars(self, group: Group, step: Tensor) -> Columns:
        """What `move` takes: a number, or one for each of n parameters, whose steps `step` counts."""

    @abstractmethod
    def move(self, g: Tensor, state: dict[str, Tensor], s: Sequence[Any], flags: Flags) -> tuple[Tensor, Tensor | None]:
        """Bring the state up to date for a gradient; return d, and the P² of this step, None for 1."""
