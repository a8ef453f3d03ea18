"""Spectral densities against exact spectra."""

from __future__ import annotations

import builtins
import math

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn

from tests.problems import SPECTRA, random_spectrum
from wellcond.curvature import GaussNewton, Hessian
from wellcond.linalg import Lanczos, MatrixOperator, Quadrature, SpectralDensity, spectral_density
from wellcond.linalg.deflation import Deflated, Isolated
from wellcond.linalg.quadrature import SpectralTails
from wellcond.problem import Problem


def graded(n: int = 400) -> torch.Tensor:
    """A few large eigenvalues, many small ones of both signs: what a network's Hessian has."""
    small = torch.logspace(-6, -2, n - 30, dtype=torch.float64)
    small[::3] *= -1
    return torch.cat([small, torch.logspace(-1.5, 1, 30, dtype=torch.float64)]).sort().values


def marchenko_pastur(n: int) -> torch.Tensor:
    X = torch.randn(2 * n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    return X.T @ X / (2 * n)


def fraction_below(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (values < x[:, None]).double().mean(1)


def distance(d: SpectralDensity, values: torch.Tensor) -> float:
    return float(wasserstein_distance(values.numpy(), d.nodes.numpy(), None, d.weights.numpy()))


def outside(d: SpectralDensity, values: torch.Tensor) -> float:
    """The share of edges at which the bounds do not hold; where an edge meets an eigenvalue, either way."""
    slack = 1e-9 * float(values.abs().max())
    too_low = d.upper < fraction_below(values, d.edges - slack) - 1e-9
    too_high = d.lower > fraction_below(values, d.edges + slack) + 1e-9
    return float((too_low | too_high).double().mean())


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("name", SPECTRA)
def test_an_operator_that_fits_is_taken_apart_whole(name, scale):
    """Indefinite, rank one, zero, repeated, one by one: every eigenvalue, by as many products as there are."""
    values = SPECTRA[name]
    A = MatrixOperator(random_spectrum(values))
    d = spectral_density(A, probes=8, steps=20, scale=scale)
    assert d.products == A.products == len(values)
    top = float(values.abs().max())
    assert distance(d, values) <= 1e-13 * max(top, 1)
    assert outside(d, values) == 0
    assert float(d.standard_error.abs().sum()) == 0
    assert d.largest.value == pytest.approx(float(values.max()), abs=1e-12)
    assert d.smallest.value == pytest.approx(float(values.min()), abs=1e-12)


@pytest.mark.parametrize("name", [name for name in SPECTRA if name != "one by one"])
def test_mass_is_conserved_and_bounded_from_few_products(name):
    values = SPECTRA[name]
    for scale in ("linear", "log"):
        A = MatrixOperator(random_spectrum(values))
        d = spectral_density(A, probes=4, steps=20, scale=scale, seed=3)
        assert d.products == A.products <= 80
        widths = d.edges.diff()
        if scale == "log":
            inner = int((d.edges < 0).sum()) - 1
            ratios = (d.edges[1:] / d.edges[:-1]).abs().log10().abs()
            widths = torch.cat([ratios[:inner], ratios[inner + 1 :]])
        assert float(d.density @ widths) + d.rest.value == pytest.approx(1)
        assert float(d.weights.sum()) == pytest.approx(1)
        assert (d.density >= -1e-12).all()
        assert (d.cumulative.diff() >= -1e-12).all()
        assert float(d.cumulative[0]) == pytest.approx(0, abs=1e-12)
        assert float(d.cumulative[-1]) == pytest.approx(1)
        assert outside(d, values) == 0
        assert len(d.grid) == len(d.density) == len(d.standard_error)
        assert (d.grid.diff() > 0).all()


def test_repeated_eigenvalues_are_counted_as_often_as_they_come():
    """The Krylov space has two dimensions: what the rest is like only further directions say."""
    values = torch.cat([torch.ones(300), 2 * torch.ones(100)]).double()
    for probes in (1, 6):
        above = []
        for seed in range(12):
            d = spectral_density(MatrixOperator(random_spectrum(values)), probes=probes, steps=12, seed=seed)
            assert outside(d, values) == 0
            above.append(1 - float(d.weights[d.nodes < 1.5].sum()))
            assert set(d.nodes.round(decimals=6).tolist()) == {1.0, 2.0}
        assert sum(above) / len(above) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("n", [300, 600])
def test_marchenko_pastur(n):
    """Against the law itself, whose density on [a, b] is √((x−a)(b−x))/(2πcx); c = 1/2."""
    a, b = (1 - math.sqrt(0.5)) ** 2, (1 + math.sqrt(0.5)) ** 2
    A = marchenko_pastur(n)
    d = spectral_density(MatrixOperator(A), probes=7, steps=40, seed=1)
    law = torch.sqrt(((d.grid - a) * (b - d.grid)).clamp_min(0)) / (math.pi * d.grid)
    assert float((d.density - law).abs() @ d.edges.diff()) < 0.1  # of 1; sampling: 3 % in a cell that holds a tenth
    values = torch.linalg.eigvalsh(A)
    assert distance(d, values) < 0.02
    assert d.largest.value == pytest.approx(float(values[-1]), abs=1e-3)


@pytest.mark.parametrize(
    ("values", "bound"),
    # Over 16 seeds the means come to 0.005 and 0.48; over eight of one spectrum 0.48 varies by some 0.05.
    [(graded(), 0.05), (torch.linalg.eigvalsh(marchenko_pastur(400)), 0.65)],
    ids=["graded", "Marchenko-Pastur"],
)
def test_it_is_nearer_than_gauss_quadrature_with_the_same_products(values, bound):
    A, ours, plain = MatrixOperator(random_spectrum(values)), 0.0, 0.0
    for seed in range(8):
        ours += distance(spectral_density(A, probes=8, steps=30, seed=seed), values)
        generator = torch.Generator().manual_seed(1000 + seed)
        nodes, weights = [], []
        for _ in range(8):
            start = torch.randn(len(values), dtype=torch.float64, generator=generator)
            theta, S = torch.linalg.eigh(Lanczos(A, start).extend(30).tridiagonal())
            nodes.append(theta)
            weights.append(S[0].square())
        plain += wasserstein_distance(values.numpy(), torch.cat(nodes).numpy(), None, torch.cat(weights).numpy())
    assert ours / plain < bound


def test_standard_errors_cover():
    """In wide cells, where resolution plays no part: within two standard errors as often as a normal variable."""
    values = torch.linalg.eigvalsh(marchenko_pastur(400))
    A, hits = MatrixOperator(random_spectrum(values)), []
    for seed in range(25):
        d = spectral_density(A, probes=6, steps=24, points=12, seed=seed)
        exact = fraction_below(values, d.edges).diff() / d.edges.diff()
        hits.append((d.density - exact).abs() <= 2 * d.standard_error + 0.5 / len(values) / d.edges.diff())
    share = float(torch.stack(hits).double().mean())
    assert 0.93 <= share <= 1


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_bounds_contain_the_exact_distribution(scale):
    """At every edge, for 8 seeds; each bound is at 99.7 %, and most are wider than sampling."""
    missed = []
    for values in (graded(), torch.linalg.eigvalsh(marchenko_pastur(300))):
        for seed in range(8):
            d = spectral_density(MatrixOperator(random_spectrum(values)), probes=5, steps=24, scale=scale, seed=seed)
            missed.append(outside(d, values))
            assert (d.lower <= d.upper).all()
            if scale == "log":
                assert float((values.abs() < d.resolution).double().mean()) in d.rest
    assert sum(missed) / len(missed) < 0.003
    assert float((d.upper - d.lower).mean()) < 0.5  # bounds that say nothing would hold as well


def test_log_scale_counts_by_decade():
    values = graded()
    d = spectral_density(MatrixOperator(random_spectrum(values)), probes=8, steps=40, scale="log", points=12)
    negative, middle = int((d.grid < 0).sum()), int((d.edges < 0).sum()) - 1
    assert negative == middle
    assert (d.grid[:negative] < -d.resolution).all()
    assert (d.grid[negative:] > d.resolution).all()
    assert float(d.edges[middle + 1]) == pytest.approx(d.resolution)
    for i, density in enumerate(d.density):
        left, right = (d.edges[i + (i >= middle)], d.edges[i + 1 + (i >= middle)])
        exact = float(((values >= left) & (values < right)).double().mean()) / abs(math.log10(abs(right / left)))
        assert float(density) == pytest.approx(exact, abs=4 * float(d.standard_error[i]) + 0.03)


def test_nothing_is_negative_where_nothing_can_be():
    values = torch.cat([torch.zeros(200), torch.logspace(-3, 1, 100)]).double()
    A = MatrixOperator(random_spectrum(values), positive_semidefinite=True)
    for scale in ("linear", "log"):
        d = spectral_density(A, probes=4, steps=20, scale=scale)
        assert (d.nodes >= 0).all() if d.isolated == 0 else float(d.nodes.min()) > -1e-12
        assert float(d.upper[d.edges <= 0].sum()) == 0
        if scale == "log":
            assert (d.grid > 0).all()
            assert d.rest.high >= 2 / 3


def test_single_precision():
    values = graded()
    A64 = random_spectrum(values)
    d = spectral_density(MatrixOperator(A64.float()), probes=8, steps=30, seed=1)
    exact = torch.linalg.eigvalsh(A64)
    reference = spectral_density(MatrixOperator(A64), probes=8, steps=30, seed=1)
    assert distance(d, exact) < 3 * distance(reference, exact) + 1e-6 * float(exact.abs().max())
    assert d.density.dtype == torch.float64
    too_low = d.upper < fraction_below(exact, d.edges - 1e-4) - 1e-9
    too_high = d.lower > fraction_below(exact, d.edges + 1e-4) + 1e-9
    assert float((too_low | too_high).double().mean()) < 0.003


def test_the_hessian_and_gauss_newton_of_a_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    X = torch.randn(50, 8, dtype=torch.float64)
    problem = Problem(model, nn.CrossEntropyLoss(), (X, torch.randint(4, (50,))))
    with problem:
        for operator in (Hessian(problem), GaussNewton(problem)):
            matrix = operator.dense()
            values, spent = torch.linalg.eigvalsh((matrix + matrix.T) / 2), operator.products
            d = spectral_density(operator, probes=4, steps=30, scale="log")
            assert operator.products - spent == d.products <= 120 < problem.size
            assert outside(d, values) < 0.01
            assert d.largest.low <= float(values[-1]) <= d.largest.high
            assert d.smallest.low - 1e-12 <= float(values[0]) <= d.smallest.high + 1e-12
            assert d.of == type(operator).__name__


def test_it_depends_on_the_seed_alone():
    A = MatrixOperator(random_spectrum(graded()))
    first, again, other = (spectral_density(A, probes=4, steps=20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.density, again.density)
    assert not torch.equal(first.nodes, other.nodes)


def test_directions_are_not_the_data_of_the_same_seed():
    """A direction equal to the first row of X would see XᵀX through one of its own rows."""
    X = torch.randn(900, 450, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A = X.T @ X / 900
    d = spectral_density(MatrixOperator(A), probes=8, steps=40, seed=0)
    assert distance(d, torch.linalg.eigvalsh(A)) < 0.02


def test_products_are_never_more_than_asked_for():
    A = MatrixOperator(random_spectrum(graded()))
    for probes, steps in ((1, 2), (1, 40), (2, 30), (3, 7), (8, 20), (12, 3)):
        d = spectral_density(A, probes, steps)
        assert probes * steps - max(8, steps // 3) < d.products <= probes * steps


def test_bad_arguments_are_refused():
    A = MatrixOperator(torch.eye(4))
    for wrong, match in (
        ({"probes": 0}, "probes"),
        ({"steps": 1}, "steps"),
        ({"scale": "square"}, "linear"),
        ({"points": 2}, "points"),
        ({"confidence": 1.0}, "confidence"),
    ):
        with pytest.raises(ValueError, match=match):
            spectral_density(A, **wrong)
    with pytest.raises(FloatingPointError, match="not finite"):
        spectral_density(MatrixOperator(torch.full((4, 4), torch.nan)))


def test_what_is_isolated_and_what_remains_make_up_the_matrix():
    values = graded(200)
    A = MatrixOperator(random_spectrum(values))
    start = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Isolated.of(Lanczos(A, start).extend(40))
    U = found.vectors
    k = len(U)
    assert 5 <= k < 40
    assert torch.allclose(U @ U.T, torch.eye(k, dtype=torch.float64), atol=1e-12)
    assert found.remaining == 200 - k
    rest = torch.linalg.eigvalsh(Deflated(A, U).dense())
    # The rest's own spectrum and k zeros, which are not its eigenvalues.
    rest = rest[rest.abs().argsort()][k:] if k else rest
    together = torch.cat([found.values, rest]).sort().values
    exact = torch.linalg.eigvalsh(A.matrix)
    assert float((together - exact).abs().max()) <= float(found.coupling[found.locked].norm()) + 1e-5


@pytest.mark.parametrize("directions", [1, 4, 16])
def test_the_limits_of_what_a_mean_mass_says_hold(directions):
    """Chernoff's bounds against the masses themselves: each side fails less often than stated."""
    n, confidence, draws = 60, 0.9, 4000
    quadratures = [Quadrature(torch.zeros(1, 1), 0.0, 0.0, 1)] * directions
    tails = SpectralTails(n, quadratures, torch.zeros(0), 0.0, confidence)
    generator = torch.Generator().manual_seed(directions)
    squares = torch.randn(draws, directions, n, dtype=torch.float64, generator=generator).square()
    masses = squares / squares.sum(-1, keepdim=True)
    for k in (1, 5, 30, 55):
        mean = masses[..., :k].sum(-1).mean(1)
        low, high = tails.limit(mean, 0.0), tails.limit(mean, 1.0)
        assert float((low > k / n).double().mean()) <= (1 - confidence) / 2
        assert float((high < k / n).double().mean()) <= (1 - confidence) / 2
        assert float((high - low).mean()) < 1
    nothing = torch.zeros(1, dtype=torch.float64)
    assert float(tails.limit(nothing, 1.0)) * n < (1 if directions > 1 else 2)


def test_the_plot_says_what_its_axes_are():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    A = MatrixOperator(random_spectrum(graded()))
    for scale, x, y in (
        ("linear", "eigenvalue of MatrixOperator", "fraction per unit of eigenvalue"),
        ("log", "|eigenvalue| of MatrixOperator", "eigenvalues per decade"),
    ):
        d = spectral_density(A, probes=4, steps=20, scale=scale)
        ax = plt.subplots()[1]
        assert d.plot(ax) is ax
        assert ax.get_xlabel() == x
        assert ax.get_ylabel() == y
        if scale == "log":
            assert ax.get_xscale() == "log"
            assert "below the resolution" in ax.get_title()
            assert [text.get_text() for text in ax.get_legend().get_texts()] == ["eigenvalue > 0", "eigenvalue < 0"]
        ax.figure.canvas.draw()
        plt.close("all")
    for name in ("zero", "one by one"):
        for scale in ("linear", "log"):
            d = spectral_density(MatrixOperator(random_spectrum(SPECTRA[name])), steps=20, scale=scale)
            d.plot().figure.canvas.draw()
    plt.close("all")


def test_a_missing_matplotlib_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    d = spectral_density(MatrixOperator(torch.eye(3)))
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"wellcond\[plot\]"):
        d.plot()
