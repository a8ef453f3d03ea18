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


for name in NAMES:
    import_module(f"{__name__}.{name}")

CLAIMS: Sequence[Claim] = tuple(claim() for claim in Claim.__subclasses__())
