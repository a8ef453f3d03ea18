"""torch.optim.Adadelta."""

from __future__ import annotations

import torch
from torch import Tensor

from wellcond.preconditioners.reading import Flags, Group, Reading, Scalar, State, reads


@reads(torch.optim.Adadelta)
class Adadelta(Reading):
    """√(v+ε)/√(Δ+ε), with Δ as it was before the step, recovered from what the step made of it."""

    needs_gradient = True
    translates = True

    def flags(self, group: Group) -> None:
        return None  # `root` needs numbers of the group

    def root(self, state: State, group: Group | Flags) -> Tensor:
        g = -state["grad"] if group["maximize"] else state["grad"]
        if not group["weight_decay"]:
            return self._root(state, group, g)
        # The decay was that of the parameter before the step: it is moved back by what this decay would have moved it.
        decayed = g + group["weight_decay"] * state["param"]
        before = state["param"] + group["lr"] * decayed / self._root(state, group, decayed)
        return self._root(state, group, g + group["weight_decay"] * before)

    @staticmethod
    def _root(state: State, group: Group | Flags, g: Tensor) -> Tensor:
        rho, eps = group["rho"], group["eps"]
        v = state["square_avg"] + eps
        w = g.square() / v
        delta = (state["acc_delta"] - (1 - rho) * eps * w) / (rho + (1 - rho) * w)
        return (v / (delta + eps)).sqrt()

    def correct(self, group: Group, step: Scalar) -> tuple[Scalar, Scalar]:
        return 1.0, 0.0

    def root_v(self, state: State, group: Group) -> Tensor | None:
        return state["square_avg"].sqrt() if state else None
