"""How far are estimated spectra from the exact ones, ours against those of other libraries, at the same products?

The 1-Wasserstein distance between the estimate and all eigenvalues, in units of the mean |λ|: of Hessians of three
small networks, and of a Marchenko-Pastur matrix. Every library gets the same matrix in float64 and the same number of
products; the others also get, in hindsight, their best division of it into probes and steps. Each gives two things: a
*measure* (nodes and weights; ours continues them, theirs are Gauss nodes) and a *density* on a grid. Missing libraries
are left out. PyHessian calls torch.eig, which torch no longer has, and leaves broadening to a script; both are supplied
here. curvlinops is given both ends of the spectrum for nothing. Of two widths of broadening the better one counts.

    python benchmarks/spectral_density.py [--quick] [--write-docs]

Needs scipy, scikit-learn, and what is to be compared of curvlinops-for-pytorch, hessian-eigenthings and pyhessian.
"""

import contextlib
import importlib.util
import io
import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Iterator

import torch
from scipy.stats import wasserstein_distance
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import Tensor, nn

import wellcond as wc
from networks import train
from tables import PAGE, Table, arguments, write_section
from wellcond.linalg import MatrixOperator

SPLITS = {640: [(8, 80), (4, 160), (16, 40), (32, 20)], 320: [(8, 40), (4, 80), (16, 20)], 160: [(4, 40), (2, 80)]}
"""Products, and the divisions into probes and steps that the others may choose from; we get the first."""


def digits() -> nn.Module:
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    layers += [nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 10)]
    return nn.Sequential(*layers)


def wine() -> nn.Module:
    return nn.Sequential(nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))


def cancer() -> nn.Module:
    layers = [nn.Linear(30, 48), nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 16), nn.GELU(), nn.Linear(16, 2)]
    return nn.Sequential(*layers)


def hessian(load: Callable[..., tuple], build: Callable[[], nn.Module], examples: int, steps: int) -> Tensor:
    torch.manual_seed(0)
    X, y = (torch.as_tensor(part[:examples]) for part in load(return_X_y=True))
    X = ((X - X.mean(0)) / X.std(0).clamp_min(1e-8)).double()
    model, loss_fn = build().double(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    train(model, loss_fn, optimizer, itertools.repeat((X, y), steps))
    problem = wc.Problem(model, loss_fn, (X, y))
    with problem:
        H = wc.Hessian(problem).dense()
    return (H + H.T) / 2


def marchenko_pastur(n: int) -> Tensor:
    X = torch.randn(2 * n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1234))
    return X.T @ X / (2 * n)


def matrices(quick: bool) -> Iterator[tuple[str, Tensor]]:
    yield "wine, tanh MLP", hessian(load_wine, wine, 178, 60)
    yield "cancer, layer norm", hessian(load_breast_cancer, cancer, 569, 60)
    if not quick:
        yield "digits, convolution", hessian(load_digits, digits, 400, 100)
    yield "Marchenko-Pastur", marchenko_pastur(1000 if quick else 2000)


def histogram(edges: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Mass spread evenly over cells, as nodes and weights."""
    inside = (torch.arange(8) + 0.5) / 8
    nodes = (edges[:-1, None] + edges.diff()[:, None] * inside).flatten()
    return nodes, (mass.clamp_min(0)[:, None] / 8).expand(-1, 8).flatten()


Result = dict[str, tuple[Tensor, Tensor]]
"""Nodes and weights by name."""


def ours(A: Tensor, ends: tuple[float, float], probes: int, steps: int, seed: int) -> Result:
    d = wc.spectral_density(MatrixOperator(A), probes, steps, seed=seed)
    assert d.products <= probes * steps
    return {"measure": (d.nodes, d.weights), "density": histogram(d.edges, d.density * d.edges.diff())}


def hessian_eigenthings(A: Tensor, ends: tuple[float, float], probes: int, steps: int, seed: int) -> Result:
    from hessian_eigenthings.algorithms.spectral_density import spectral_density as estimate
    from hessian_eigenthings.operators.base import LambdaOperator

    operator = LambdaOperator(lambda v: A @ v, len(A), dtype=A.dtype)
    d = estimate(operator, num_runs=probes, lanczos_steps=steps, seed=1000 * seed)
    # Its default width, and a tenth of it, which is better on networks.
    narrow = _broadened(d.raw_eigenvalues, d.raw_weights, d.sigma / 10, 0.1 * (ends[1] - ends[0]))
    return {
        "measure": (d.raw_eigenvalues.flatten(), d.raw_weights.flatten()),
        "density": (d.grid, d.density),
        "density, narrow": narrow,
    }


def pyhessian(A: Tensor, ends: tuple[float, float], probes: int, steps: int, seed: int) -> Result:
    from pyhessian import hessian as measured

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.zeros(len(A)))

        def forward(self, _: Tensor) -> Tensor:
            return self.p @ (A @ self.p) / 2

    def eig(T: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(T)
        return torch.stack([values, torch.zeros_like(values)], 1), vectors

    torch.eig = eig  # type: ignore[attr-defined]
    torch.manual_seed(1000 * seed)
    run = measured(Quadratic(), lambda output, _: output, data=(torch.zeros(1), torch.zeros(1)), cuda=False)
    nodes, weights = (torch.tensor([[float(x) for x in row] for row in part]) for part in run.density(steps, probes))
    # The variance that its plotting script takes: 1e-5 of the range, and of no range under 1.
    sigma = math.sqrt(1e-5 * max(1.0, float(nodes.max() - nodes.min())))
    return {
        "measure": (nodes.flatten(), weights.flatten()),
        "density": _broadened(nodes, weights, sigma, 0.01),
        "density, narrow": _broadened(nodes, weights, 1e-3 * float(nodes.max() - nodes.min()), 0.01),
    }


def curvlinops(A: Tensor, ends: tuple[float, float], probes: int, steps: int, seed: int) -> Result:
    from curvlinops.papyan2020traces.spectrum import fast_lanczos, lanczos_approximate_spectrum_from_iter

    torch.manual_seed(1000 * seed)
    runs = [fast_lanczos(A, steps) for _ in range(probes)]
    found = {"measure": (torch.cat([theta for theta, _ in runs]), torch.cat([S[0].square() for _, S in runs]))}
    for name, kappa in (("density", 3.0), ("density, narrow", 1e6)):
        parts = [lanczos_approximate_spectrum_from_iter(run, ends, 10_000, kappa, 0.05) for run in runs]
        found[name] = (parts[0][0], torch.stack([density for _, density in parts]).mean(0))
    return found


def _broadened(nodes: Tensor, weights: Tensor, sigma: float, pad: float) -> tuple[Tensor, Tensor]:
    grid = torch.linspace(float(nodes.min()) - pad, float(nodes.max()) + pad, 10_000)
    density = torch.zeros_like(grid)
    for theta, w in zip(nodes, weights, strict=True):
        density += (w[:, None] * torch.exp(-(((grid - theta[:, None]) / sigma) ** 2) / 2)).sum(0)
    return grid, density


PEERS = {"hessian_eigenthings": hessian_eigenthings, "pyhessian": pyhessian, "curvlinops": curvlinops}


def distances(estimate: Callable[..., Result], A: Tensor, exact: Tensor, split: tuple[int, int], seeds: int) -> dict:
    """Mean distance over seeds of the measure and of the better density."""
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        with contextlib.redirect_stdout(io.StringIO()):
            results = estimate(A, (float(exact[0]), float(exact[-1])), *split, seed)
        for name, (nodes, weights) in results.items():
            distance = wasserstein_distance(exact.numpy(), nodes.numpy(), None, weights.clamp_min(0).numpy())
            found.setdefault(name, []).append(float(distance / exact.abs().mean()))
    means = {name: statistics.mean(values) for name, values in found.items()}
    best: dict[str, float] = {}
    for name, value in means.items():
        kind = name.split(",")[0]
        best[kind] = min(best.get(kind, math.inf), value)
    return best


def main() -> None:
    given = arguments(__doc__, quick="fewer matrices, budgets and seeds", page=PAGE).parse_args()
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)  # PyHessian has zeros of the default type
    seeds = 4 if given.quick else 8
    peers = {name: f for name, f in PEERS.items() if importlib.util.find_spec(name)}
    table = Table("matrix", "products", "estimate", "wellcond", *peers, "÷ best", "÷ best in hindsight")
    for matrix, A in matrices(given.quick):
        exact = torch.linalg.eigvalsh(A)
        for budget in [640] if given.quick else SPLITS:
            mine = distances(ours, A, exact, SPLITS[budget][0], seeds)
            rows = {
                name: [distances(f, A, exact, split, seeds) for split in SPLITS[budget][: 2 if given.quick else None]]
                for name, f in peers.items()
            }
            for kind, value in mine.items():
                theirs = {name: [row[kind] for row in by_split if kind in row] for name, by_split in rows.items()}
                known = [values for values in theirs.values() if values]
                same, best = (min(map(f, known), default=math.nan) for f in (lambda v: v[0], min))
                cells = [f"{values[0]:.4f}" if values else None for values in theirs.values()]
                table.add(f"{matrix}, n = {len(A)}", budget, kind, f"{value:.4f}", *cells, value / same, value / best)
    print(f"Wasserstein distance over mean |λ|, means of {seeds} seeds", table, sep="\n\n")
    if given.write_docs:
        write_section("spectral_density", table)


if __name__ == "__main__":
    main()
