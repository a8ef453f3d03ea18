"""Group penalties: whole rows, columns or other sets of entries become zero together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wellcond.penalties.partition import Numbered, Slices
from wellcond.penalties.penalty import Penalty, soft, wide, widened
from wellcond.penalties.separable import checked_ratio

# Newton steps for a group's norm in the original space. Held against scipy's brentq on 60,000 random groups, and on
# groups searched for the slowest convergence, with steps 1e8 apart: 13 always reached the last digits.
_NEWTON_STEPS = 16


class SparseGroupL1(Penalty):
    """``strength * (l1_ratio * ||x||_1 + (1 - l1_ratio) * Σ_G sqrt(|G|) ||x_G||_2)``, |G| the entries of group G.

    Args:
        strength: λ ≥ 0, per unit of the loss.
        l1_ratio: the share of L1, from 0 to 1.
        dim: one group for every index along this dimension, over all others: 0 are rows (output channels), 1 columns.
        groups: instead of `dim`, an integer tensor of the penalized tensor's shape: each entry's group number, from 0.

    Raises:
        TypeError, ValueError: for groups that don't cover the tensor, or a tensor without that dimension.

    Source: theory, section 4.5. A group with an entry that is not finite passes the proximal step unchanged.
    """

    separable = False

    def __init__(self, strength: float, l1_ratio: float = 0.5, dim: int = 0, groups: Tensor | None = None):
        super().__init__(strength)
        self.l1_ratio = checked_ratio(l1_ratio)
        self.partition = Slices(dim) if groups is None else Numbered(groups)

    def value(self, x: Tensor) -> Tensor:
        x = wide(x)
        largest, _, relative = self._norms(x)
        groups = (self._weight(x) * largest * relative).sum()
        return self.kink * x.abs().sum() + groups if self.l1_ratio else groups

    @widened
    def gradient(self, x: Tensor) -> Tensor:
        _, unit, relative = self._norms(x)
        spread = self.partition.spread
        return self.kink * x.sign() + x / spread(unit, x) * spread(self._weight(x) / relative, x)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return self._prox_in_metric(x, step) if _varies(step) else self.scaled_prox(x, step, 1.0)

    @widened
    def scaled_prox(self, x: Tensor, step: Tensor | float, scale: Tensor | float) -> Tensor:
        if _varies(step):
            return super().scaled_prox(x, step, scale)
        if isinstance(step, Tensor):
            step = step.reshape(())
        u, spread = self._soft(x, step * scale), self.partition.spread
        largest, factor = self._shrinkage(u / scale, step)
        return torch.where(spread(largest.isfinite(), x), u * spread(factor, x), x)

    @widened
    def _prox_in_metric(self, x: Tensor, step: Tensor) -> Tensor:
        """The prox where the step varies inside a group: a one-dimensional root each, for r = ||q_G||.

        q = 0 where ||u/step|| ≤ w, else q = u r/(r + w step) with the norm of u/(r + w step) equal to 1. One over that
        norm is concave and increasing in r, so Newton's method from the left rises to the root and never passes it.
        """
        d = step.to(x.dtype).expand_as(x)
        spread, total, largest = self.partition.spread, self.partition.total, self.partition.largest
        u = self._soft(x, d)
        # In units of the group's largest entry, and from where no term exceeds 1, nothing overflows.
        size, unit, _ = self._norms(u)
        v, weight = u / spread(unit, x), self._weight(x) / unit
        pull = d * spread(weight, x)
        r = largest((v.abs() - pull).clamp(min=0))
        for _ in range(_NEWTON_STEPS):
            below = spread(r, x) + pull
            squares = (v / below).square()
            excess = total(squares)
            r = r + excess * (excess.sqrt() - 1) / total(squares / below)
        # What has a step of 0 stays where it is: nothing pulls on it, unless it is 0.
        dual, _, relative_dual = self._norms(torch.where(v == 0, v, v / d))
        norm = spread(r, x)
        q = torch.where(spread(dual * relative_dual > weight, x), u * (norm / (norm + pull)), 0.0)
        return torch.where(spread(size.isfinite(), x), q, x)

    @widened
    def residual(self, x: Tensor, gradient: Tensor) -> Tensor:
        r, spread = super().residual(x, gradient), self.partition.spread
        _, factor = self._shrinkage(r, 1.0)
        return torch.where(spread(self.partition.largest(x) == 0, x), r * spread(factor, x), r)

    @property
    def options(self) -> dict[str, Any]:
        return {"l1_ratio": self.l1_ratio, **self.partition.name}

    def _weight(self, x: Tensor) -> Any:
        """What multiplies every group's norm."""
        return self.strength * (1 - self.l1_ratio) * self.partition.root_size(x)

    def _soft(self, x: Tensor, step: Tensor | float) -> Tensor:
        return soft(x, self.kink * step) if self.l1_ratio else x

    def _norms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of every group the largest entry, the same as a unit to divide by, and the norm in that unit: never 0."""
        largest = self.partition.largest(x.detach())
        unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
        # The largest entry alone makes 1; the clamp is for groups of zeros, where a root has no gradient.
        relative = self.partition.total((x / self.partition.spread(unit, x)).square()).clamp(min=1).sqrt()
        return largest, unit, relative

    def _shrinkage(self, x: Tensor, step: Tensor | float) -> tuple[Tensor, Tensor]:
        """Of every group the largest entry, and the factor that its prox multiplies it by."""
        largest, unit, relative = self._norms(x)
        return largest, (1 - step * self._weight(x) / unit / relative).clamp(min=0)


class GroupL1(SparseGroupL1):
    """``strength * Σ_G sqrt(|G|) ||x_G||_2``, |G| the entries of group G: the group lasso.

    Args:
        strength: λ ≥ 0, per unit of the loss.
        dim: one group for every index along this dimension, over all others: 0 are rows (output channels), 1 columns.
        groups: instead of `dim`, an integer tensor of the penalized tensor's shape: each entry's group number, from 0.

    Raises:
        TypeError, ValueError: for groups that don't cover the tensor, or a tensor without that dimension.

    Source: theory, section 4.5. A group with an entry that is not finite passes the proximal step unchanged.
    """

    def __init__(self, strength: float, dim: int = 0, groups: Tensor | None = None):
        super().__init__(strength, 0.0, dim, groups)

    @property
    def options(self) -> dict[str, Any]:
        return self.partition.name


def _varies(step: Tensor | float) -> bool:
    return isinstance(step, Tensor) and step.numel() != 1
