"""A penalty τ‖p‖₁ in a loss, found from its gradient alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wellcond.linalg import Estimate
from wellcond.parameters import flatten
from wellcond.problem import Problem

AGREE = 0.02
"""How far from their median, relative to it, the jumps in three quarters of a tensor's coordinates may lie: what is
smooth, and a ReLU's kink that happens to be met, makes jumps that have nothing in common."""

PROBED = 12
"""Coordinates of a tensor, at most, and an eighth of them: the others keep the network what it is."""


def l1_strengths(problem: Problem, seed: int = 0) -> dict[str, Estimate]:
    """τ of each tensor in whose coordinates the loss has the same kink at zero, by name.

    Some coordinates of every tensor are put on +δ and then on −δ. Of τ‖p‖₁ the gradient there jumps by 2τ, of all that
    is smooth by O(δ). Twice, with other coordinates; four gradients of the first batch.
    """
    generator = torch.Generator().manual_seed(seed)
    relative = 1e-8 if problem.dtype == torch.float64 else 1e-4
    rounds = [_jumps(problem, relative, generator) for _ in range(2)]
    floor = 100 * relative * max(size for _, size in rounds)
    strengths = {}
    for name, *jumps in zip(problem.names, *(found for found, _ in rounds), strict=True):
        rising = torch.cat(jumps).double().sort().values
        middle = float(rising[len(rising) // 2])
        near = rising[(rising - middle).abs() <= AGREE * middle]
        if middle > floor and len(near) >= max(3, math.ceil(0.75 * len(rising))):
            how = f"jump of the gradient at 0 in {len(near)} of {len(rising)} coordinates of {name}"
            strengths[name] = Estimate(middle, float(near[0]), float(near[-1]), how)
    return strengths


def _jumps(problem: Problem, relative: float, generator: torch.Generator) -> tuple[list[Tensor], float]:
    """Half of (gradient just above 0 − gradient just below), (k,) for each tensor; and the largest |gradient|."""
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
    jumps = [(piece[at] * target.sign() / 2).cpu() for piece, at, target in zip(pieces, chosen, targets, strict=True)]
    return jumps, float(gradients[0].abs().max())
