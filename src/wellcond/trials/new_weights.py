"""New weights, drawn by the modules that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import nn

from wellcond.problem import Problem


def fresh_share(problem: Problem) -> float:
    """How much of the measured parameters belongs to modules that can draw them again."""
    known = {id(p) for m in problem.model.modules() if _reset_of(m) for p in m._parameters.values()}
    return sum(p.numel() for p in problem.parameters if id(p) in known) / problem.size


def renew(model: nn.Module, among: Collection[int]) -> None:
    """Let modules draw those of their parameters again that have these ids; the others stay."""
    for module in model.modules():
        reset = _reset_of(module)
        own = [p for p in module._parameters.values() if p is not None]
        if reset and any(id(p) in among for p in own):
            kept = [(p, p.detach().clone()) for p in own if id(p) not in among]
            reset()
            with torch.no_grad():
                for p, before in kept:
                    p.copy_(before)


def _reset_of(module: nn.Module) -> Callable[[], None] | None:
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
