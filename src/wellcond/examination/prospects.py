"""What is predicted of the run as it is, and of other preconditioners and rates (theory, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wellcond.condition_numbers import Conditioning
from wellcond.curvature import CurvatureOperator, row_scaling
from wellcond.forecasts import Candidate, Forecast, as_it_is, forecast
from wellcond.linalg import Estimate, eigenvalues
from wellcond.preconditioners import Preconditioner, steps_of
from wellcond.stability import EdgeRatio

STEPS = 20
"""A prediction is rarely to be trusted further, and each step is a product."""


TOP = 40
"""Products for λ_max with scaled rows, of which nothing is known before."""


def scaled_rows(H: CurvatureOperator, figures: Conditioning, seed: int) -> Candidate:
    """The preconditioner that an optimizer's √v is said to measure (theory, section 3.2), from row norms at hand.

    Args:
        H: the Hessian, or Gauss-Newton where that is all there is.
        figures: of it.
        seed: of the random direction.

    Raises:
        ValueError: if there is no curvature.
    """
    P = row_scaling(H, squared_rows=figures.squared_row_norms())
    products = min(TOP, H.size)
    found = eigenvalues(H.preconditioned(P), min_products=products, max_products=products, seed=seed)
    return Candidate(P, largest=found.largest())


def prospects(
    curvature: CurvatureOperator,
    optimizer: Any,
    P: Preconditioner | None,
    figures: Mapping[str, Conditioning],
    scaled: Candidate,
    edge: EdgeRatio | None,
) -> Forecast:
    """A forecast from here: as it is, the optimizer's P by itself, no P, and rows scaled.

    Args:
        curvature: of the quadratic model.
        optimizer: None without one.
        P: its preconditioner.
        figures: of the Hessian, or of Gauss-Newton where that is all there is: "plain", and "preconditioned" where P is
            more than the identity.
        scaled: from `scaled_rows`.
        edge: the edge ratio, from which follows λ_max at the optimizer's own rates.

    Raises:
        TypeError, ValueError: as `forecast`.
    """
    candidates = {}
    if optimizer is not None and edge is not None and edge.rate > 0:
        candidates["as it is"] = replace(as_it_is(optimizer), largest=_largest(optimizer, edge))
    if "preconditioned" in figures:
        candidates["its P alone"] = Candidate(P, largest=figures["preconditioned"].largest)
    candidates |= {"no preconditioner": Candidate(largest=figures["plain"].largest), "rows scaled": scaled}
    return forecast(curvature.problem, candidates, steps=STEPS, curvature=curvature)


def products_planned(size: int, preconditioned: bool, optimizer: bool) -> dict[str, int]:
    """Products of `scaled_rows` and of `prospects`, by stage."""
    return {"scaled rows": min(TOP, size), "forecast": min(STEPS, size) * (2 + preconditioned + optimizer)}


def _largest(optimizer: Any, edge: EdgeRatio) -> Estimate:
    """λ_max(PᵀHP) with P as `as_it_is` has it: scaled so that the largest of the groups' rates is that of all."""
    steps = steps_of(optimizer)
    return edge.ratio.scaled(steps[0].bound / max(s.learning_rate * s.correction for s in steps))
