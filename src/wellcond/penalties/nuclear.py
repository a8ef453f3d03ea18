"""The nuclear norm: sparse singular values, that is a low rank."""

from __future__ import annotations

import torch
from torch import Tensor

from wellcond.penalties.penalty import Penalty, wide, widened


class NuclearNorm(Penalty):
    """Sum of singular values, ``strength * ||X||_*``; a tensor of more than two dimensions is taken as x.flatten(1).

    Singular values below the rounding error of the largest count as zero in the gradient and the residual.

    Args:
        strength: λ ≥ 0, per unit of the loss.

    Raises:
        ValueError: for a tensor of fewer than two dimensions, or a step that is not one number.

    Source: theory, section 4.5. The proximal step soft-thresholds the singular values.
    """

    separable = False

    def value(self, x: Tensor) -> Tensor:
        matrix, finite = _matrix(wide(x))
        return torch.where(finite, self.strength * torch.linalg.svdvals(matrix).sum(), torch.nan)

    @widened
    def gradient(self, x: Tensor) -> Tensor:
        U, Vh = _singular_vectors(_matrix(x)[0])
        return self.strength * (U @ Vh).view_as(x)

    @widened
    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        if isinstance(step, Tensor):
            if step.numel() != 1:
                raise ValueError(
                    f"the step has shape {tuple(step.shape)}: with a step an entry, as in the original space under a "
                    'preconditioner, the nuclear norm has no closed form; use space="intrinsic" or "euclidean"'
                )
            step = step.reshape(())
        threshold = self.strength * step
        matrix, finite = _matrix(x)
        U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
        q = (U * (s - threshold).clamp(min=0)) @ Vh
        return torch.where(finite & (threshold > 0), q.view_as(x), x)

    @widened
    def residual(self, x: Tensor, gradient: Tensor) -> Tensor:
        # ∂R(X) = λ(UVᵀ + W), W of norm 1 or less between the complements of U and V: as L1 has it, by singular values.
        (matrix, finite), (G, finite_too) = _matrix(x), _matrix(gradient.to(x.dtype))
        U, Vh = _singular_vectors(matrix)
        normal = G - U @ (U.mT @ G)
        normal = normal - (normal @ Vh.mT) @ Vh
        A, s, Bh = torch.linalg.svd(normal, full_matrices=False)
        r = G + self.strength * (U @ Vh) - (A * s.clamp(max=self.strength)) @ Bh
        return torch.where(finite & finite_too, r.view_as(x), torch.nan)


def _matrix(x: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor as a matrix, zeros for what LAPACK would stumble over, and whether it was finite."""
    if x.ndim < 2:
        raise ValueError(f"a tensor of shape {tuple(x.shape)} is no matrix and has no nuclear norm; leave vectors out")
    return x.flatten(1).nan_to_num(0.0, 0.0, 0.0), x.isfinite().all()


def _singular_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """U and Vᵀ, zero where the singular value is zero up to rounding."""
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = s > max(matrix.shape) * torch.finfo(s.dtype).eps * s[:1]
    return U * kept, Vh * kept[:, None]
