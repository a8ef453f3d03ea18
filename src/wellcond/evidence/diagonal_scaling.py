"""The best diagonal scaling of a positive definite matrix, with a proof that it is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Best(NamedTuple):
    """The best diagonal scaling that was found: its κ(DHD), and a lower bound of κ(DHD) over all D."""

    kappa: float
    bound: float


def condition(H: Tensor, D: Tensor | None = None) -> float:
    """κ(DHD), or κ(H), of H ≻ 0."""
    values = torch.linalg.eigvalsh(H if D is None else D[:, None] * H * D)
    return float(values[-1] / values[0])


def best_scaling(H: Tensor) -> Best:
    """Minimize κ(DHD) over D = diag(exp(d)), from Jacobi's D, by a smooth bound that is tightened in turn.

    λ_max ≤ (tr A^q)^{1/q}, the same for A⁻¹, A = DHD. κ(DHD) ≤ κ is quasiconvex in D⁻², so that there are no other
    minima; and its dual bounds it from below: κ(DHD) ≥ tr(YH)/tr(XH) for all D and any X, Y ⪰ 0 with equal diagonals.
    Those of the smooth minimum, made equal by scaling X, certify it.
    """
    d = (-0.5 * H.diagonal().log()).requires_grad_()
    kappa, bound = condition(H, d.detach().exp()), 1.0
    for q in (4.0, 16.0, 64.0, 256.0, 1024.0):
        optimizer = torch.optim.LBFGS([d], max_iter=200, history_size=50, line_search_fn="strong_wolfe")

        def smooth(q: float = q, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            values = torch.linalg.eigvalsh(d.exp()[:, None] * H * d.exp()).log()
            loss = ((q * values).logsumexp(0) + (-q * values).logsumexp(0)) / q
            loss.backward()
            return loss.detach()

        optimizer.step(smooth)
        D = d.detach().exp()
        kappa = min(kappa, condition(H, D))
        values, U = torch.linalg.eigh(D[:, None] * H * D)
        high, low = ((sign * q * values.log()).softmax(0) for sign in (1, -1))
        Y, X = (D[:, None] * (U * weights @ U.T) * D for weights in (high, low))
        equal = (Y.diagonal() / X.diagonal()).sqrt()
        bound = max(bound, float((Y * H).sum() / (equal[:, None] * X * equal * H).sum()))
    return Best(kappa, min(bound, kappa))  # above it by rounding alone
