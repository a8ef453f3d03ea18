"""Conditioning of what a layer sees: the extended hidden matrix of theory section 5.1, from one pass over the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wellcond.linalg import Estimate
from wellcond.problem import Problem

WIDEST = 4096
"""Layers with more inputs are left out: their Gram matrix would take more than 134 MB."""


@dataclass(frozen=True)
class LayerConditioning:
    """κ of a layer's extended hidden matrix Ĥ = [1 H], a row an example, as it is and under normalizations.

    κ is the ratio of the extreme singular values that are not zero.

    Attributes:
        name: of the module.
        rows, columns: of Ĥ; the column of ones counts where the layer has a bias.
        rank: number of singular values that are not zero to rounding.
        constant: inputs that never vary.
        is_input: whether the layer sees the data themselves.
        kappa: as it is.
        centered: with the mean taken off each column.
        scaled: each column divided by its root mean square.
        standardized: centered and divided by the standard deviation, what batch normalization does.
        mean_share: how much of the largest eigenvalue of HᵀH/N the mean makes, 0 to 1.
    """

    name: str
    rows: int
    columns: int
    rank: int
    constant: int
    is_input: bool
    kappa: Estimate
    centered: Estimate
    scaled: Estimate
    standardized: Estimate
    mean_share: float


def layer_conditioning(problem: Problem) -> list[LayerConditioning]:
    """κ of the extended hidden matrix of every `nn.Linear` that the data pass through, in the order of the passage.

    One pass over the data, one Gram matrix a layer in float64. A layer called several times in a forward pass
    (weight sharing, one call a time step) collects the rows of all its calls. Layers with more than 4,096 inputs are
    left out.

    Args:
        problem: the network and its data.

    Raises:
        ValueError: if the inputs of a layer are not finite, naming it.

    Source: theory, sections 5.1 and 5.2.
    """
    moments: dict[str, _Moments] = {}

    def record(name: str, module: nn.Module, x: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        if x.shape[-1] > WIDEST:
            return
        if name not in moments:
            is_input = problem.is_input(x)
            # What the network computed in float32 is known to float32; data are what they are.
            rounding = 0.0 if is_input else torch.finfo(x.dtype).eps
            moments[name] = _Moments(x.shape[-1], module.bias is not None, is_input, rounding)
        moments[name].add(name, x.reshape(-1, x.shape[-1]).double())

    problem.record_inputs(nn.Linear, record)
    return [m.conditioning(name) for name, m in moments.items()]


class _Moments:
    """Σx and Σxxᵀ about a fixed shift, the first batch's mean: a mean far above the spread would cancel."""

    def __init__(self, width: int, bias: bool, is_input: bool, rounding: float):
        self.width, self.bias, self.is_input, self.rounding = width, bias, is_input, rounding
        self.rows = 0

    def add(self, name: str, x: Tensor) -> None:
        if not torch.isfinite(x).all():
            raise ValueError(f"the inputs of layer {name} are not finite; look for the overflow before it")
        if not self.rows:
            self.shift = x.mean(0)
            self.total = torch.zeros_like(self.shift)
            self.squares = x.new_zeros(self.width, self.width)
            self.low, self.high = x.amin(0), x.amax(0)
        self.low, self.high = torch.minimum(self.low, x.amin(0)), torch.maximum(self.high, x.amax(0))
        x = x - self.shift
        self.rows += len(x)
        self.total += x.sum(0)
        self.squares += x.T @ x

    def conditioning(self, name: str) -> LayerConditioning:
        """Everything from the mean, the deviations and a square root of the correlation matrix.

        With C = D·F²·D the covariance, ĤᵀĤ/N = MᵀM for M = [[1, μᵀ], [0, F·D]]: the singular values of this small
        matrix are those of Ĥ/√N. Unlike those of the Gram matrix ĤᵀĤ they lose no digits to a mean or to a column far
        above the others, only to columns that are nearly collinear.
        """
        offset = self.total / self.rows
        mean = self.shift + offset
        covariance = self.squares / self.rows - torch.outer(offset, offset)
        varies = self.high > self.low
        deviation = torch.where(varies, covariance.diagonal().clamp_min(0).sqrt(), 0.0)
        varies = deviation > 0
        inverse = torch.where(varies, 1 / deviation.clamp_min(1e-300), 0.0)
        correlation = covariance * inverse * inverse[:, None]
        eigenvalues, vectors = torch.linalg.eigh((correlation + correlation.T) / 2)
        # What of the correlation matrix is rounding: its accumulated sums, and the values themselves.
        unresolved = len(eigenvalues) * torch.finfo(torch.float64).eps * float(eigenvalues[-1])
        kept = eigenvalues > unresolved
        root = torch.where(kept, eigenvalues, 0.0).sqrt()[:, None] * vectors.T
        uncertain = unresolved / float(eigenvalues[kept][0]) if kept.any() else 0.0
        root_mean_square = torch.hypot(mean, deviation)
        unit = torch.where(root_mean_square > 0, root_mean_square, 1.0)
        zero = torch.zeros_like(mean)
        has_mean = self._leaves_the_range(mean * inverse, mean * ~varies, vectors[:, ~kept])
        rank = int(kept.sum())
        whole = rank + (1 if self.bias else int(has_mean))
        kappa = self._kappa(mean, root * deviation, whole, uncertain)
        top = torch.linalg.svdvals(torch.cat([mean[None], root * deviation]))[0]
        return LayerConditioning(
            name=name,
            rows=self.rows,
            columns=self.width + self.bias,
            rank=min(whole, self.rows),
            constant=int((self.high == self.low).sum()),
            is_input=self.is_input,
            kappa=kappa,
            centered=self._kappa(zero, root * deviation, rank + self.bias, uncertain),
            scaled=self._kappa(mean / unit, root * deviation / unit, whole, uncertain),
            standardized=self._kappa(zero, root * varies, rank + self.bias, uncertain),
            mean_share=float(mean @ mean / top.square().clamp_min(1e-300)),
        )

    @staticmethod
    def _leaves_the_range(standardized: Tensor, constant: Tensor, null: Tensor) -> bool:
        """Whether the mean adds a dimension to the span of the centered rows."""
        outside = torch.cat([null.T @ standardized, constant]).abs().max() if len(constant) else 0.0
        return bool(outside > 1e-8 * standardized.abs().max().clamp_min(1e-300)) if len(constant) else False

    def _kappa(self, mean: Tensor, centered: Tensor, rank: int, uncertain: float) -> Estimate:
        """κ of M, given its number of singular values that are not zero and the relative error of F²."""
        M = torch.cat([mean[None], centered])
        if self.bias:
            ones = torch.zeros(len(M), 1, dtype=M.dtype, device=M.device)
            ones[0] = 1
            M = torch.cat([ones, M], 1)
        s = torch.linalg.svdvals(M)
        if rank == 0 or float(s[0]) == 0:
            return Estimate.undefined("the inputs are all zero")
        top, bottom = float(s[0]), float(s[min(rank, len(s)) - 1])
        error = (len(s) * torch.finfo(torch.float64).eps + 4 * self.rounding) * top
        how = "exact: moments in float64" + (" of activations in float32" if self.rounding > 1e-10 else "")
        low = (top - error) / (bottom + error) * (1 - uncertain)
        high = (top + error) / (bottom - error) * (1 + uncertain) if bottom > 2 * error else math.inf
        value = top / bottom if bottom > 2 * error else low
        return Estimate(value, max(1.0, low), high, how)
