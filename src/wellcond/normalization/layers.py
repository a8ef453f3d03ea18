"""Conditioning of what a layer sees: the extended hidden matrix of theory section 5.1, from its Gram matrix."""

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

    κ is the ratio of the extreme singular values that are not zero to rounding.

    Attributes:
        name: of the module.
        rows, columns: of Ĥ; the column of ones counts where the layer has a bias.
        rank: columns less the singular values that are zero to rounding.
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
    grams: dict[str, _Gram] = {}

    def record(name: str, module: nn.Module, x: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        if x.shape[-1] <= WIDEST:
            if name not in grams:
                grams[name] = _Gram(x.shape[-1], module.bias is not None, problem.is_input(x))
            grams[name].add(name, x.reshape(-1, x.shape[-1]).double())

    problem.record_inputs(nn.Linear, record)
    return [gram.conditioning(name) for name, gram in grams.items()]


class _Gram:
    """ΣxxᵀT and Σx about a fixed shift, the first batch's mean: a mean far above the spread would cancel."""

    def __init__(self, width: int, bias: bool, is_input: bool):
        self.width, self.bias, self.is_input = width, bias, is_input
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
        N = self.rows
        offset = self.total / N
        mean = self.shift + offset
        covariance = self.squares / N - torch.outer(offset, offset)
        varies = self.high > self.low
        covariance = covariance * varies * varies[:, None]
        second = covariance + torch.outer(mean, mean)
        deviation = torch.where(varies, covariance.diagonal().clamp_min(0), 1.0).sqrt()
        root_mean_square = torch.where(second.diagonal() > 0, second.diagonal(), 1.0).sqrt()
        zero = torch.zeros_like(mean)
        kappa, rank = _kappa(self._extended(second, mean))
        return LayerConditioning(
            name=name,
            rows=N,
            columns=self.width + self.bias,
            rank=min(rank, N),
            constant=int((~varies).sum()),
            is_input=self.is_input,
            kappa=kappa,
            centered=_kappa(self._extended(covariance, zero))[0],
            scaled=_kappa(
                self._extended(second / torch.outer(root_mean_square, root_mean_square), mean / root_mean_square)
            )[0],
            standardized=_kappa(self._extended(covariance / torch.outer(deviation, deviation), zero))[0],
            mean_share=float(mean @ mean / torch.linalg.eigvalsh(second)[-1].clamp_min(1e-300)),
        )

    def _extended(self, second: Tensor, mean: Tensor) -> Tensor:
        """ĤᵀĤ/N with the column of ones, where the layer has a bias."""
        if not self.bias:
            return second
        gram = second.new_empty(self.width + 1, self.width + 1)
        gram[0, 0], gram[0, 1:], gram[1:, 0], gram[1:, 1:] = 1, mean, mean, second
        return gram


def _kappa(gram: Tensor) -> tuple[Estimate, int]:
    """κ of a matrix from its Gram matrix, whose eigenvalues are the squared singular values, and its rank."""
    eigenvalues = torch.linalg.eigvalsh((gram + gram.T) / 2)
    top = float(eigenvalues[-1])
    if top <= 0:
        return Estimate.undefined("the inputs are all zero"), 0
    error = len(eigenvalues) * torch.finfo(torch.float64).eps * top
    kept = eigenvalues[eigenvalues > error]
    bottom, rank = float(kept[0]), len(kept)
    low = math.sqrt(top / (bottom + error))
    # A Gram matrix resolves singular values down to √ε of the largest: beyond that, "at least".
    high = math.sqrt(top / (bottom - error)) if bottom > 10 * error else math.inf
    return Estimate(math.sqrt(top / bottom), low, high, "exact: Gram matrix in float64"), rank
