"""How noisy the gradient of a batch is: the simple noise scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wellcond.linalg import CONFIDENCE, Estimate, jackknife
from wellcond.problem import Problem, count_examples

FEWEST = 4
"""Batches of which a spread can be told."""

MOST = 64
"""Batches that are looked at, and their gradients kept, as long as they take less than `MEMORY`."""

MEMORY = 2**30
"""Bytes."""


@dataclass(frozen=True)
class NoiseScale:
    """Of the gradients of batches as they are drawn.

    Attributes:
        examples: tr Σ/‖G‖², the batch at which the noise is as large as the gradient, Σ the covariance of one
            example's gradient, G its mean; "at least" where ‖G‖² can't be told from zero; undefined where the
            gradients differ too much in size to tell.
        ratio: the same over the examples of a batch: noise over signal, both squared.
        batch: examples of a batch, their harmonic mean.
    """

    examples: Estimate
    ratio: Estimate
    batch: float


def noise_scale(problem: Problem) -> NoiseScale | None:
    """The simple noise scale; None for fewer than four batches.

    Unbiased from batches of b_i examples: E g_i·g_j = ‖G‖² and E ‖g_i‖² = ‖G‖² + tr Σ/b_i. The interval is the
    jackknife's over batches.

    Source: McCandlish et al., arXiv 1812.06162, section 2.2 and appendix A.
    """
    k = min(len(problem.batches), MOST, MEMORY // (problem.size * problem.dtype.itemsize))
    if k < FEWEST:
        return None
    # Spread over the data: a list of batches may be sorted.
    indices = [i * len(problem.batches) // k for i in range(k)]
    gradients = torch.stack([problem.batch_gradient(i) for i in indices])
    gram = (gradients @ gradients.T).double().cpu()
    sizes = torch.tensor([count_examples(problem.batches[i]) for i in indices], dtype=torch.float64)
    signal, noise = _jackknife(gram, sizes)
    batch = 1 / float((1 / sizes).mean())
    how = f"gradients of {k} batches"
    if not noise.defined or signal.high <= 0:
        why = f"{how}: too few to tell"
        return NoiseScale(Estimate.undefined(why), Estimate.undefined(why), batch)
    low = noise.low / signal.high
    value = noise.value / signal.value if signal.value > 0 else low
    examples = Estimate(value, low, noise.high / signal.low if signal.low > 0 else math.inf, how, CONFIDENCE)
    return NoiseScale(examples, examples.scaled(1 / batch), batch)


def _jackknife(gram: Tensor, sizes: Tensor) -> tuple[Estimate, Estimate]:
    """‖G‖² and tr Σ with their intervals; that of tr Σ, which is positive and may have a long tail, is one of its
    logarithm, and undefined where a batch less leaves nothing of it."""
    k = len(gram)
    whole = _signal_and_noise(gram, sizes)
    kept = [torch.arange(k) != j for j in range(k)]
    others = torch.stack([_signal_and_noise(gram[own][:, own], sizes[own]) for own in kept])
    (value, size), h = whole.tolist(), jackknife(others[:, 0])
    signal = Estimate(value, value - h, value + h, "jackknife", CONFIDENCE)
    if not bool((others[:, 1] > 0).all()):
        return signal, Estimate.undefined("no more noise than rounding")
    factor = math.exp(min(jackknife(others[:, 1].log()), 100.0))
    return signal, Estimate(size, size / factor, size * factor, "jackknife of the logarithm", CONFIDENCE)


def _signal_and_noise(gram: Tensor, sizes: Tensor) -> Tensor:
    """(‖G‖², tr Σ)."""
    k = len(gram)
    signal = (gram.sum() - gram.trace()) / (k * (k - 1))
    return torch.stack([signal, (gram.trace() - k * signal) / (1 / sizes).sum()])
