"""Steps that are the same from everywhere: p ← (1 − lr·τ)p + d, with a d that does not depend on p."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.preconditioners import Diagonal, Preconditioner

# Exactly these, for a subclass may read its parameters. ASGD averages them, and Adafactor scales by them.
_KINDS = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
    torch.optim.Rprop,
)


def decays_of_translations(optimizer: Optimizer, parameters: Sequence[Tensor], P: Preconditioner) -> list[float] | None:
    """The factor 1 − lr·τ of each of the parameters; None for a step that is not known to be such a translation.

    In z the factor is the same (theory, section 4.2) where P is diagonal, or one factor is that of all.
    """
    if type(optimizer) not in _KINDS:
        return None
    factors: dict[int, float] = {}
    may_skip = getattr(optimizer, "found_inf", None) is not None  # what a fused step does where a GradScaler overflowed
    for group in optimizer.param_groups:
        decay, rate = group.get("weight_decay", 0.0), group["lr"]
        if decay and (isinstance(rate, Tensor) or not group.get("decoupled_weight_decay") or may_skip):
            return None
        factors.update(dict.fromkeys(map(id, group["params"]), 1 - rate * decay if decay else 1.0))
    chosen = [factors[id(p)] for p in parameters]
    return chosen if isinstance(P, Diagonal) or len(set(chosen)) == 1 else None
