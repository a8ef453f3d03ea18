"""What a penalty does to p in each of the three spaces (theory, sections 4.1 and 4.5)."""

from __future__ import annotations

from torch import Tensor

from wellcond.penalties import Penalty

SPACES = ("intrinsic", "original", "euclidean")


def prox(penalty: Penalty, space: str, u: Tensor, rate: Tensor | float, squared: Tensor | None) -> Tensor:
    """The proximal step of size `rate` from u, in p.

    Args:
        penalty: R.
        space: "intrinsic": P·prox(P⁻¹u); "original": the prox in the metric of P⁻²; "euclidean": P ignored.
        u: what the optimizer produced.
        rate: α_pen.
        squared: P_ii², broadcasting against u; None for 1.
    """
    if squared is None or space == "euclidean":
        return penalty.prox(u, rate)
    if space == "original":
        return penalty.prox(u, rate * squared)
    return penalty.scaled_prox(u, rate, squared.sqrt())


def value(penalty: Penalty, space: str, p: Tensor, squared: Tensor | None) -> Tensor:
    """R(z), or R(p), of shape ()."""
    return penalty.value(p if squared is None or space != "intrinsic" else p / squared.sqrt())


def move(penalty: Penalty, space: str, p: Tensor, squared: Tensor | None) -> Tensor:
    """What gradient descent in the space moves p against, for a unit step: P∇R(P⁻¹p), P²∇R(p) or ∇R(p)."""
    if squared is None or space == "euclidean":
        return penalty.gradient(p)
    if space == "original":
        return squared * penalty.gradient(p)
    scale = squared.sqrt()
    return scale * penalty.gradient(p / scale)


def coordinates(space: str, p: Tensor, gradient: Tensor, squared: Tensor | None) -> tuple[Tensor, Tensor]:
    """The point and the gradient of the loss as the space has them: z and Pᵀg, p and g, or p and P²g.

    In euclidean space P²g + ∂R(p) is what the iteration rests at.
    """
    if squared is None or space == "original":
        return p, gradient
    if space == "euclidean":
        return p, squared * gradient
    scale = squared.sqrt()
    return p / scale, scale * gradient
