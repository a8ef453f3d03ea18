"""The claims of the theory, in its order: one file per claim, with one class in it."""

from collections.abc import Sequence
from importlib import import_module

from wellcond.evidence.claim import Claim

NAMES = (
    "rate",
    "change_of_variables",
    "row_norms",
    "conditioning",
    "best_diagonal",
    "adamw",
    "l2_spectrum",
    "l2_generalization",
    "weighted_lasso",
    "sparsity",
    "rest_point",
    "normalization",
    "block_bound",
    "bnp",
    "edge",
    "forecast",
)
"""The files of the claims."""


def _in_file(name: str) -> Claim:
    module = import_module(f"{__name__}.{name}")
    own = [x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__]
    (claim,) = (x for x in own if issubclass(x, Claim))
    return claim()


CLAIMS: Sequence[Claim] = tuple(map(_in_file, NAMES))
