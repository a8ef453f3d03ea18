"""The changes that can be asked about, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wellcond.problem import Problem
from wellcond.trials.networks import Network, batch_normalized, layer_normalized, standardized_inputs


def _batch_norm_preconditioned(given: Problem) -> Network:
    from wellcond.trials.bnp import batch_norm_preconditioned

    return batch_norm_preconditioned(given)


CHANGES: dict[str, Callable[[Problem], Network]] = {
    "standardize inputs": standardized_inputs,
    "batch norm": batch_normalized,
    "layer norm": layer_normalized,
    "BNP": _batch_norm_preconditioned,
}


def changes_of(change: str | Sequence[str]) -> list[str]:
    """The names that were asked for, once each.

    Raises:
        TypeError, ValueError: for anything else.
    """
    names = [change] if isinstance(change, str) else list(change)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"got a {type(name).__name__} as change; give names: {', '.join(map(repr, CHANGES))}")
        if name not in CHANGES:
            raise ValueError(f"got change={name!r}; there are {', '.join(map(repr, CHANGES))}")
    if not names:
        raise ValueError(f"no change is asked about; there are {', '.join(map(repr, CHANGES))}")
    return list(dict.fromkeys(names))
