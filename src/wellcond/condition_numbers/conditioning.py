"""The figures of a curvature, whatever its size."""

from __future__ import annotations

from dataclasses import replace

from wellcond.condition_numbers.effective import effective as kappa_effective
from wellcond.condition_numbers.figures import Conditioning
from wellcond.condition_numbers.sampled import Effort, SampledConditioning
from wellcond.condition_numbers.whole import WholeConditioning
from wellcond.linalg import DENSE_LIMIT, Estimate, SymmetricOperator, check_operator


def conditioning(
    operator: SymmetricOperator,
    *,
    effort: Effort | None = None,
    dense_limit: int = DENSE_LIMIT,
    effective: bool = True,
    seed: int = 0,
) -> Conditioning:
    """The condition figures of a curvature: exact up to `dense_limit` parameters, honest intervals above.

    κ_eff comes from the operator's gradient on its positive semidefinite curvature: for a Hessian, the Gauss-Newton
    matrix of the same problem.

    Args:
        operator: a Hessian, Gauss-Newton or any symmetric operator, preconditioned or not.
        effort: products to spend above the limit.
        dense_limit: the largest size for which the matrix is formed (n products, 8n² bytes).
        effective: whether to compute κ_eff, which takes a gradient and products of its own.
        seed: of every random direction.

    Source: theory, section 2.2.

    >>> from wellcond.linalg import MatrixOperator
    >>> import torch
    >>> c = conditioning(MatrixOperator(torch.diag(torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64))))
    >>> print(c.largest, c.kappa_mean, c.kappa_star, c.kappa(0.5))
    9 2.25 9 4.5
    """
    check_operator(operator)
    effort = effort or Effort()
    gradient = operator.gradient() if effective else None
    curvature = operator.semidefinite() if gradient is not None else None
    # κ_eff is made of the gradient's weights on the semidefinite curvature: on this one's own, where it is.
    own = gradient if curvature is operator else None
    used = {operator, curvature or operator}
    spent = sum(x.products for x in used)
    with operator.keeping(effort.extremes):
        found: Conditioning
        if operator.size <= dense_limit:
            found = WholeConditioning.of(operator, own, effort.count)
        else:
            found = SampledConditioning.of(operator, effort, seed)
        if effective:
            kappa, outside = kappa_effective(operator, curvature, gradient, found, effort, seed)
        else:
            kappa = outside = Estimate.undefined("not asked for")
    products = sum(x.products for x in used) - spent
    return replace(found, kappa_effective=kappa, outside_range=outside, products=products)
