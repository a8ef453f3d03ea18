"""The density of a spectrum by stochastic Lanczos quadrature with the isolated eigenvalues taken out."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from wellcond.linalg.deflation import DeflatedTails, Isolated
from wellcond.linalg.density import SpectralDensity
from wellcond.linalg.eigenvalues import eigenvalues
from wellcond.linalg.estimate import CONFIDENCE, Estimate
from wellcond.linalg.lanczos import Lanczos
from wellcond.linalg.measures import Measure, continued, mixture
from wellcond.linalg.operator import SymmetricOperator, check_operator
from wellcond.linalg.quadrature import Quadrature

SEPARATED = 0.25
"""Where this share of the first run's Ritz pairs converge, the spectrum is spread over scales, as a network's is:
resolution counts more than directions, and the first run is worth as many products again. Else directions count more.
On Hessians of two networks the Wasserstein distance fell by 2 against a first run of 80 products and further ones of
13; on a Marchenko-Pastur matrix, the other way, runs of 10 did a tenth better than those of 13."""

LEAST = 8
"""Steps of a further run."""


def spectral_density(
    operator: SymmetricOperator,
    probes: int = 8,
    steps: int = 80,
    *,
    scale: str = "linear",
    points: int | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> SpectralDensity:
    """How the eigenvalues of a symmetric operator are distributed, from probes × steps products.

    One Lanczos run of `steps` products, or twice as many where that finds isolated eigenvalues, finds both ends and
    takes those eigenvalues out: each has weight 1/n, and nothing is left to chance. The other products go to many
    short runs on the space that remains, each continued by a constant tail that fills the interval in which the rest
    of the spectrum lies. An operator of no more than probes × steps rows is taken apart whole, by as many products as
    it has rows.

    Memory: up to 2 · steps vectors, and one for each eigenvalue taken out.

    Args:
        operator: n × n.
        probes: with `steps`, the products that may be spent: probes × steps.
        steps: products of the first run.
        scale: "linear", or "log" for the density of log₁₀|λ|, positive and negative apart.
        points: cells of the grid, by default 400, in log scale 100. In a linear grid half of them are of equal
            width, up to as many more divide those with much mass.
        seed: of the random directions.
        confidence: probability with which each bound holds.

    Raises:
        ValueError: if an argument makes no sense.
        FloatingPointError: if a product is not finite.

    Source: Lin, Saad and Yang, "Approximating spectral densities of large matrices", SIAM Review 58 (2016), for the
    quadrature; Haydock, Heine and Kelly, J. Phys. C 5 (1972), for continuing it; theory, section 2.2, for the bounds.

    >>> import torch
    >>> from wellcond.linalg import MatrixOperator
    >>> d = spectral_density(MatrixOperator(torch.diag(torch.linspace(1, 3, 1000, dtype=torch.float64))), probes=4)
    >>> print(d.largest, d.products, round(float(d.weights @ d.nodes), 1))
    3 320 2.0
    """
    check_operator(operator)
    points = points or (100 if scale == "log" else 400)
    if probes < 1 or steps < 2:
        raise ValueError(f"got probes={probes}, steps={steps}; at least one probe of two steps is needed")
    if scale not in ("linear", "log"):
        raise ValueError(f'got scale={scale!r}; it is "linear" or "log"')
    if points < 4 or not 0 < confidence < 1:
        raise ValueError(f"got points={points}, confidence={confidence}; at least 4 points, a confidence in (0, 1)")
    n, spent = operator.size, operator.products
    first = n if n <= probes * steps else steps
    with operator.keeping(probes * steps):
        e = eigenvalues(
            operator,
            1,
            "both",
            min_products=first,
            max_products=first,
            max_basis=min(n, max(2 * first, 8)),  # the first run may become twice as long
            seed=seed,
            confidence=confidence,
        )
        known, quadratures, measures = _sampled(operator, e.run, probes, steps, seed + 1)
    eigen, share = known.values, known.remaining / n
    if operator.positive_semidefinite:
        eigen = eigen.clamp_min(0)
        measures = [Measure(m.points.clamp_min(0), m.below) for m in measures]
    nodes, weights = mixture(eigen, measures, n)
    resolution = _resolution(known, e.rounding) if scale == "log" else 0.0
    edges = _log_edges(nodes, resolution, points) if scale == "log" else _linear_edges(nodes, weights, points)
    below = torch.stack([m.at(edges) for m in measures]) if measures else edges.new_zeros(1, len(edges))
    cumulative = (eigen < edges[:, None]).double().sum(1) / n + share * below.mean(0)
    mass, error = cumulative.diff(), share * _sampling_error(below.diff(), known.remaining, len(measures))
    lower, upper = DeflatedTails.of(known, quadratures, e.rounding, confidence).fraction_below(edges)
    if operator.positive_semidefinite:
        lower, upper = (torch.where(edges > 0, bound, 0.0) for bound in (lower, upper))

    if scale == "log":
        middle = int((edges < 0).sum()) - 1
        drawn = torch.arange(len(mass)) != middle
        widths = (edges[1:] / edges[:-1]).abs().log10().abs()[drawn]
        grid = (edges[1:].sign() * (edges[1:] * edges[:-1]).abs().sqrt())[drawn]
        least, most = float(lower[middle + 1] - upper[middle]), float(upper[middle + 1] - lower[middle])
        how = f"|λ| < {resolution:.1e}; Chebyshev-Markov-Stieltjes bounds"
        rest = Estimate(float(mass[middle]), max(0.0, least), min(1.0, most), how, 2 * confidence - 1)
    else:
        drawn = torch.ones(len(mass), dtype=torch.bool)
        widths, grid = edges.diff(), (edges[1:] + edges[:-1]) / 2
        rest = Estimate.exactly(0.0, "none in linear scale")
    return SpectralDensity(
        size=n,
        scale=scale,
        edges=edges,
        grid=grid,
        density=mass[drawn] / widths,
        standard_error=error[drawn] / widths,
        cumulative=cumulative,
        lower=lower,
        upper=upper,
        nodes=nodes,
        weights=weights,
        largest=e.largest(),
        smallest=e.smallest(),
        resolution=resolution,
        rest=rest,
        isolated=len(eigen),
        directions=len(measures),
        products=operator.products - spent,
        confidence=confidence,
        of=type(operator).__name__,
    )


def _sampled(
    operator: SymmetricOperator, run: Lanczos, probes: int, steps: int, seed: int
) -> tuple[Isolated, list[Quadrature], list[Measure]]:
    """What the first run isolates, and the quadratures and continued measures of what remains."""
    known, short = Isolated.of(run), steps // 8
    if run.steps == steps and probes >= 4 and int(known.locked.sum()) >= SEPARATED * steps:
        known, short = Isolated.of(run.extend(steps)), steps // 3
    short = min(steps, max(LEAST, short))
    found = known.probe(operator, (probes * steps - run.steps) // short, short, seed=seed)
    quadratures = [p.quadrature for p in found]
    rules = [(*torch.linalg.eigh(q.T), q.residual) for q in quadratures]
    unlocked = torch.cat([known.theta[~known.locked], *(theta for theta, _, _ in rules)])
    measures = [continued(theta, S[0], residual * S[-1], unlocked) for theta, S, residual in rules]
    start = known.S[0, ~known.locked]
    # Where the run exhausted its Krylov space its start says nothing about what is left.
    if float(start.square().sum()) > 1e-6 * known.remaining / operator.size:
        measures.append(continued(known.theta[~known.locked], start, known.coupling[~known.locked], unlocked))
    if known.remaining and not measures:
        # Nothing but the start says how often the eigenvalues found are repeated.
        known = replace(known, locked=torch.zeros_like(known.locked))
        measures = [continued(known.theta, known.S[0], torch.zeros_like(known.theta), known.theta)]
    return known, quadratures, measures


def _linear_edges(nodes: Tensor, weights: Tensor, points: int) -> Tensor:
    a, b = float(nodes[0]), float(nodes[-1])
    pad = max(0.01 * (b - a), 1e-3 * max(abs(a), abs(b))) or 1.0
    uniform = torch.linspace(a - pad, b + pad, points - points // 2 + 1, dtype=torch.float64)
    levels = torch.linspace(0, 1, points // 2 + 2, dtype=torch.float64)[1:-1]
    equal = nodes[torch.searchsorted(weights.cumsum(0), levels).clamp_max(len(nodes) - 1)]
    # Only where mass is concentrated: elsewhere these would cut slivers off the uniform cells.
    cell = torch.searchsorted(uniform, equal)
    edges = torch.cat([uniform, equal[torch.bincount(cell)[cell] > 2]]).unique()
    # Nor cells around one repeated eigenvalue, as narrow as its rounding.
    wide = edges.diff() > 1e-7 * (b - a + 2 * pad)
    return torch.cat([edges[:1], edges[1:][wide]])


def _log_edges(nodes: Tensor, resolution: float, points: int) -> Tensor:
    """Cells of equal width in log₁₀|λ|, about `points` over both signs; the one around 0 reaches to the resolution."""
    reach = [
        max(0.0, math.log10(max(1.001 * x, resolution) / resolution)) for x in (-float(nodes[0]), float(nodes[-1]))
    ]
    sides = []
    for decades in reach:
        cells = math.ceil(points * decades / max(sum(reach), 1e-300)) if decades > 0 else 0
        sides.append(resolution * 10 ** torch.linspace(0, decades, cells + 1, dtype=torch.float64))
    return torch.cat([-sides[0].flip(0), sides[1]])


def _resolution(known: Isolated, rounding: float) -> float:
    """The smallest r for which four Ritz values of the first run lie in [−r, r]: how the mass in there is divided no
    run can say, and with two the density just above r still showed single nodes. Where all is known, rounding."""
    magnitudes = known.theta[~known.locked].abs().sort().values
    least = max(rounding, torch.finfo(known.run.operator.dtype).tiny)
    return max(least, float(magnitudes[:4].max())) if len(magnitudes) else least


def _sampling_error(mass: Tensor, n: int, directions: int) -> Tensor:
    """Standard error of the mean mass in each cell, (cells,), from the spread over directions, (directions, cells); not
    less than that of uniform directions, in which a share f of n eigenvectors has a mass of variance 2f(1−f)/(n+2)."""
    if directions == 0:
        return torch.zeros_like(mass[0])
    f = mass.mean(0).clamp(0, 1)
    error = (2 * f * (1 - f) / (n + 2) / directions).sqrt()
    return error if directions == 1 else torch.maximum(error, mass.std(0) / math.sqrt(directions))
