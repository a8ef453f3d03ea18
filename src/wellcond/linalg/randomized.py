"""The trace and the diagonal of a matrix that is known by its products, from random directions, with their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wellcond.linalg.estimate import Estimate, student
from wellcond.linalg.vectors import RandomDirections, finite, inner, norm, without

FEWEST = 20
"""Products under which the spread of the samples says too little about their error."""


class Multiplying(Protocol):
    """What is asked of a matrix here: its products with vectors of this kind."""

    size: int
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v: Tensor) -> Tensor:
        """The product with one vector, (n,)."""


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal of a matrix.

    Attributes:
        values: (n,), in the unit of the matrix.
        standard_error: (n,), of each value over the random directions; zero where it is exact.
        products: matrix-vector products spent.
        how: the method in words.
    """

    values: Tensor
    standard_error: Tensor
    products: int
    how: str


def estimate_trace(operator: Multiplying, products: int, seed: int, confidence: float) -> Estimate:
    """The trace by Hutch++: exact on a space that random products span, the mean of independent samples outside it.

    Holds products/4 vectors of length n. The interval is Student's, from the spread of the products/2 samples. XTrace,
    which uses every direction twice, came nearer by up to three times, but its samples are not independent: at 99.7 %
    its interval missed in 35 of 200 runs with 60 equal eigenvalues at the top and 120 products, this one's in none.

    Args:
        operator: n × n.
        products: to spend, 20 ≤ products < n: half on the space, half on samples.
        seed: of the directions.
        confidence: probability of the interval.

    Source: Meyer, Musco, Musco and Woodruff, "Hutch++: optimal stochastic trace estimation", SOSA 2021.
    """
    sketch = _Sketch(operator, products, seed)
    n, count, probes = operator.size, len(sketch.Q), products - 2 * len(sketch.Q)
    directions = RandomDirections(n, operator.dtype, operator.device, seed + 1)
    samples = torch.empty(probes, dtype=torch.float64)
    for i in range(probes):
        v = sketch.outside(directions.draw())
        v = v / norm(v)
        samples[i] = (n - count) * float(inner(v, operator.matvec(v)))
    known, sampled = float(sketch.H.trace()), float(samples.mean())
    error = float(samples.std()) / math.sqrt(probes)
    rounding = n * torch.finfo(operator.dtype).eps * float(sketch.H.abs().max())
    reach = student(confidence, probes - 1) * error + rounding
    how = f"Hutch++, {products} products; standard error {error:.1e}"
    return Estimate(known + sampled, known + sampled - reach, known + sampled + reach, how, confidence)


def estimate_diagonal(operator: Multiplying, products: int, seed: int) -> DiagonalEstimate:
    """The diagonal: exact for what random products span, by Hutchinson's random signs for the rest.

    With Q an orthonormal basis of the products of random directions, A = QQᵀA + AQQᵀ − QQᵀAQQᵀ + B; the diagonal of B
    is the mean of v∘Bv over random signs v. Holds products/4 vectors of length n.

    Args:
        operator: n × n.
        products: to spend, 20 ≤ products < n: half on the space, half on signs.
        seed: of the directions.

    Source: Bekas, Kokiopoulou and Saad, Appl. Numer. Math. 57 (2007); the space as in Hutch++.
    """
    sketch = _Sketch(operator, products, seed)
    Q, probes = sketch.Q, products - 2 * len(sketch.Q)
    known = 2 * sketch.products - ((sketch.H.to(Q) @ Q) * Q).sum(0)
    generator = torch.Generator(device=operator.device).manual_seed(seed + 1)
    mean, spread = torch.zeros(2, operator.size, dtype=torch.float64, device=operator.device)
    for i in range(1, probes + 1):
        signs = torch.randint(2, known.shape, generator=generator, device=known.device).to(known) * 2 - 1
        sample = (signs * sketch.outside(operator.matvec(sketch.outside(signs)))).double()
        before = sample - mean
        mean += before / i
        spread += before * (sample - mean)
    error = (spread / (probes - 1) / probes).sqrt().to(known)
    how = f"Hutchinson outside {len(Q)} directions, {products} products"
    return DiagonalEstimate(known + mean.to(known), error, products, how)


class _Sketch:
    """An orthonormal basis Q, (k, n), of the products of k random directions, H = QAQᵀ, and Σ qⱼ∘Aqⱼ, (n,)."""

    def __init__(self, operator: Multiplying, products: int, seed: int):
        if products < FEWEST:
            raise ValueError(f"got products={products}; an estimate with an error takes at least {FEWEST}")
        count = products // 4
        directions = RandomDirections(operator.size, operator.dtype, operator.device, seed)
        Q = torch.empty(count, operator.size, dtype=operator.dtype, device=operator.device)
        for j in range(count):
            y = operator.matvec(directions.draw())
            length = finite(norm(y))
            y = without(Q[:j], y)
            if norm(y) <= 10 * torch.finfo(operator.dtype).eps * length:
                # The range is exhausted, and zero is left outside: any direction fills the basis.
                y = without(Q[:j], directions.draw())
            Q[j] = y / norm(y)
        self.Q = Q
        self.H = torch.empty(count, count, dtype=torch.float64)
        self.products = torch.zeros_like(Q[0])
        for j in range(count):
            z = operator.matvec(Q[j])
            self.H[:, j] = inner(Q, z).cpu().double()
            self.products += Q[j] * z

    def outside(self, v: Tensor) -> Tensor:
        """v less its part in the space."""
        return v - inner(self.Q, v) @ self.Q
