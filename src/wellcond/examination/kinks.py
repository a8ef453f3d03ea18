"""A penalty τ‖p‖₁ in a loss, found from its gradient alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wellcond.linalg import Estimate
from wellcond.parameters import flatten
from wellcond.problem import Problem

AGREE = 0.02
"""How far, relative to their median, the jumps of a tensor's coordinates may lie apart: what is smooth, and the kink of
a ReLU that happens to be met, makes jumps that have nothing in common."""

PROBED = 12
"""Coordinates of a tensor, at most, and an eighth of them: the others keep the network what it is."""


def l1_strengths(problem: Problem, seed: int = 0) -> dict[str, Estimate]:
    """τ of each tensor in whose coordinates the loss has the same kink at zero, by name.

    Some coordinates of every tensor are put on +δ and then on −δ. Of τ‖p‖₁ the gradient there jumps by 2τ, of all that
    is smooth by O(δ). Twice, with other coordinates; four gradients of the first batch.
    """
    generator = torch.Generator().manual_seed(seed)
    double = problem.dtype == torch.float64
    found: list[list[Tensor]] = [_jumps(problem, 1e-8 if double else 1e-4, generator) for _ in range(2)]
    strengths = {}
    for name, *rounds in zip(problem.names, *found, strict=True):
        jumps = torch.cat(rounds).double()
        middle = float(jumps.median()) if len(jumps) >= 4 else 0.0
        low, high = (float(jumps.min()), float(jumps.max())) if middle > 0 else (0.0, 0.0)
        if middle > 0 and high - low <= AGREE * middle:
            how = f"jump of the gradient at 0 in {len(jumps)} coordinates of {name}"
            strengths[name] = Estimate(middle, low, high, how)
    return strengths


def _jumps(problem: Problem, relative: float, generator: torch.Generator) -> list[Tensor]:
    """Half of (gradient just above 0 − gradient just below), (k,) for each tensor."""
    chosen, targets = [], []
    for p in problem.parameters:
        n = p.numel()
        at = torch.randperm(n, generator=generator)[: min(PROBED, max(n // 8, 2))]
        # Signs at random: weights that are all small and positive would open and close units together.
        signs = torch.randint(2, (len(at),), generator=generator).double() * 2 - 1
        size = float(p.detach().double().norm()) / math.sqrt(n)
        chosen.append(at.to(p.device))
        targets.append((signs * relative * (size or 1.0)).to(p.device, problem.dtype))
    gradients = []
    for side in (1, -1):
        moves = []
        for p, at, target in zip(problem.parameters, chosen, targets, strict=True):
            value = p.detach().to(problem.dtype).reshape(-1)
            move = torch.zeros_like(value)
            move[at] = side * target - value[at]
            moves.append(move)
        with problem.moved(flatten(moves)):
            gradients.append(problem.batch_gradient(0))
    pieces = (gradients[0] - gradients[1]).split([p.numel() for p in problem.parameters])
    return [(piece[at] * target.sign() / 2).cpu() for piece, at, target in zip(pieces, chosen, targets, strict=True)]
