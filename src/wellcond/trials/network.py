"""A copy of a network, changed or not, with what it has in common with the given one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import nn

from wellcond.preconditioners import BatchNormPreconditioner
from wellcond.problem import Problem


class NotApplicableError(ValueError):
    """A change has no place in this network, or over these data."""


@dataclass
class Network:
    """A copy of a problem's network, with a change.

    `copy.deepcopy` makes another one of it, which may be trained.

    Attributes:
        model: the copy.
        twins: id of each parameter of the given network → the copy's, also where its values are others.
        notes: what to know about it.
        P: at the start of training by `precondition(optimizer, BatchNormPreconditioner(model))`, with the statistics of
            all the data; None for training by the optimizer alone.
        after: name of a layer → the normalization that was put after it; empty unless they stand there one by one.
    """

    model: nn.Module
    twins: dict[int, nn.Parameter]
    notes: list[str] = field(default_factory=list)
    P: BatchNormPreconditioner | None = None
    after: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def copy_of(cls, model: nn.Module) -> Network:
        """An unchanged copy, without gradients."""
        twin = copy.deepcopy(model)
        twin.zero_grad(set_to_none=True)
        return cls(twin, {id(p): q for p, q in zip(model.parameters(), twin.parameters(), strict=True)})

    def added(self) -> list[nn.Parameter]:
        """Parameters that the given network does not have."""
        known = {id(q) for q in self.twins.values()}
        return [q for q in self.model.parameters() if id(q) not in known]

    def replace(self, name: str, module: nn.Module) -> None:
        """Put a module, in its parent, where another is; the whole network where that is the other."""
        if not name:
            self.model = module
            return
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)

    def problem(self, given: Problem) -> Problem:
        """The given problem with this network instead: the same data, loss, weights, mode and seed."""
        parameters = [self.twins[id(p)] for p in given.parameters] + [q for q in self.added() if q.requires_grad]
        return given.like(model=self.model, parameters=parameters)
