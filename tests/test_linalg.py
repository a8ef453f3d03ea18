"""`linalg` against dense linear algebra in float64, on matrices with known spectra."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.problems import SPECTRA, random_spectrum
from wellcond.condition_numbers.sampled import Effort, SampledConditioning
from wellcond.condition_numbers.whole import WholeConditioning
from wellcond.display import number
from wellcond.linalg import (
    Estimate,
    Lanczos,
    MatrixOperator,
    Quadrature,
    RandomDirections,
    eigenvalues,
)
from wellcond.linalg.quadrature import Probe, SpectralTails, deflated_trace


def probe(A: MatrixOperator, probes: int, steps: int, seed: int) -> list[Probe]:
    directions = RandomDirections(A.size, A.dtype, A.device, seed)
    return [Probe.of(Lanczos(A, directions.draw()).extend(steps)) for _ in range(probes)]


def operator_with(values: torch.Tensor, seed: int = 0, **options) -> MatrixOperator:
    return MatrixOperator(random_spectrum(values, seed), **options)


@pytest.fixture(params=SPECTRA, ids=str)
def spectrum(request) -> torch.Tensor:
    return SPECTRA[request.param].sort().values


@pytest.mark.parametrize("seed", range(3))
def test_a_lanczos_basis_is_orthonormal_and_makes_the_matrix_tridiagonal(spectrum, seed):
    A = operator_with(spectrum, seed)
    directions = RandomDirections(A.size, A.dtype, A.device, seed)
    run = Lanczos(A, directions.draw(), restart=directions).extend(60)
    Q, T = run.basis, run.tridiagonal()
    scale = float(spectrum.abs().max()) + 1e-300
    assert (Q @ Q.T - torch.eye(len(Q), dtype=torch.float64)).abs().max() < 1e-13
    assert (Q @ A.matrix @ Q.T - T).abs().max() < 1e-12 * scale
    assert run.rounding < 1e-12 * scale


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude", "both"])
@pytest.mark.parametrize("k", [1, 3])
def test_an_eigenvalue_lies_within_every_error_bound(spectrum, which, k):
    k = min(k, len(spectrum))
    e = eigenvalues(operator_with(spectrum), k, which, tol=1e-8)
    for value, bound in zip(e.values, e.error_bounds, strict=True):
        # The dense solver that made the matrix has rounding of its own.
        assert (spectrum - value).abs().min() <= bound + 1e-14 * spectrum.abs().max()
    assert e.error_bounds.max() <= 1e-7 * spectrum.abs().max() + 1e-300


@pytest.mark.parametrize("seed", range(5))
def test_the_extreme_eigenvalues_lie_in_their_intervals(spectrum, seed):
    e = eigenvalues(operator_with(spectrum, seed), 1, "both", tol=1e-6, seed=seed)
    slack = 1e-13 * float(spectrum.abs().max())
    largest, smallest = e.largest(), e.smallest()
    assert largest.low - slack <= float(spectrum[-1]) <= largest.high + slack
    if len(spectrum) > 1:
        assert smallest.low - slack <= float(spectrum[0]) <= smallest.high + slack


def test_the_order_is_the_documented_one():
    A = MatrixOperator(torch.diag(torch.tensor([-5.0, -1.0, 0.5, 2.0, 4.0], dtype=torch.float64)))
    expected = {
        "largest": [4.0, 2.0],
        "smallest": [-5.0, -1.0],
        "magnitude": [-5.0, 4.0],
        "both": [4.0, 2.0, -5.0, -1.0],
    }
    for which, values in expected.items():
        assert eigenvalues(A, 2, which).values.tolist() == pytest.approx(values, abs=1e-12)


def test_a_small_first_residual_does_not_end_the_run():
    """Every direction is nearly an eigenvector of this matrix; a random one knows that it may have missed 1.01."""
    values = torch.cat([torch.ones(399, dtype=torch.float64), torch.tensor([1.01], dtype=torch.float64)])
    e = eigenvalues(operator_with(values))  # the very first residual is within the tolerance
    assert e.run.steps >= 2
    assert float(e.values[0]) == pytest.approx(1.01, abs=1e-9)
    # At a vector that knows nothing of the largest eigenvalue, the Krylov space is exhausted: the run starts anew.
    A = MatrixOperator(torch.diag(torch.tensor([1.0, 1.0, 1.0, 7.0], dtype=torch.float64)))
    start = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    run = Lanczos(A, start, restart=RandomDirections(4, torch.float64, torch.device("cpu"), 0)).extend(4)
    assert torch.linalg.eigvalsh(run.tridiagonal())[-1] == pytest.approx(7.0)


def test_the_probability_of_missing_the_largest_is_honest():
    """At so few steps that Lanczos has not converged, the bound of theory 2.4 must still hold: over 200 starts with
    failure probability 0.1 no more than 20 failures are expected; the bound is conservative, so none is seen."""
    values = torch.cat([torch.linspace(0, 1, 399, dtype=torch.float64), torch.tensor([1.02], dtype=torch.float64)])
    A = MatrixOperator(torch.diag(values))
    missed, short = 0, 0
    for seed in range(200):
        e = eigenvalues(A, min_products=12, max_products=12, seed=seed, confidence=0.9)
        missed += e.upper < 1.02
        short += float(e.values[0]) + float(e.error_bounds[0]) < 1.02
    assert missed <= 20
    assert short > 0  # the residual bound alone does not contain the largest eigenvalue


def test_repeated_eigenvalues_appear_once_the_space_is_exhausted():
    A = MatrixOperator(torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0, 1.0], dtype=torch.float64)))
    e = eigenvalues(A, 5)
    assert e.values.tolist() == pytest.approx([3, 3, 1, 1, 1])
    assert e.confidence == 1.0


def test_float32_rounding_is_measured_and_covers_the_true_eigenvalue():
    values = SPECTRA["graded over 1e12"]
    matrix = random_spectrum(values)
    e = eigenvalues(MatrixOperator(matrix.float()), 2, "both", tol=1e-4)
    assert 1e-9 < e.run.rounding < 1e-5
    for value, bound in zip(e.values, e.error_bounds, strict=True):
        assert (values - value).abs().min() <= bound + 1e-6  # the conversion of the matrix itself moves by ε‖A‖


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "1 to 3"),
        ({"k": 4}, "1 to 3"),
        ({"which": "biggest"}, "biggest"),
        ({"tol": 0.0}, "tol"),
        ({"tol": math.nan}, "tol"),
        ({"max_products": 0}, "max_products"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        eigenvalues(MatrixOperator(torch.eye(3)), **arguments)


def test_a_vector_of_another_kind_is_refused():
    A = MatrixOperator(torch.eye(3))
    for wrong in (torch.ones(2), torch.ones(3, dtype=torch.float64), torch.ones(3, device="meta")):
        with pytest.raises(ValueError, match="this operator takes"):
            A.matvec(wrong)
    with pytest.raises(ValueError, match="square"):
        MatrixOperator(torch.ones(2, 3))


def test_a_product_that_is_not_finite_is_named():
    with pytest.raises(FloatingPointError, match="second derivative"):
        eigenvalues(MatrixOperator(torch.full((3, 3), math.nan)))


def test_scipy_sees_the_same_matrix():
    from scipy.sparse.linalg import eigsh

    A = operator_with(SPECTRA["indefinite"])
    assert eigsh(A.to_scipy(), k=1, which="LA")[0][0] == pytest.approx(2.0, abs=1e-10)
    assert torch.equal(A @ torch.eye(A.size, dtype=torch.float64), A.dense())


# -- quadrature ------------------------------------------------------------------------------------------------------


def measure_of(values: torch.Tensor, matrix: torch.Tensor, v: torch.Tensor):
    _, U = torch.linalg.eigh(matrix)
    weights = (U.T @ v).square()
    return lambda x: float(weights[values >= x].sum())


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", range(4))
def test_tail_bounds_contain_the_true_mass(spectrum, steps, seed):
    A = operator_with(spectrum, seed)
    v = RandomDirections(A.size, A.dtype, A.device, seed).draw()
    quadrature = Quadrature.of(Lanczos(A, v).extend(steps))
    mass = measure_of(spectrum, A.matrix, v)
    scale = float(spectrum.abs().max())
    # Off the eigenvalues themselves, where rounding decides on which side they are counted.
    x = torch.linspace(-1.07 * scale, 1.07 * scale, 41, dtype=torch.float64) + 1e-5 * scale
    x = x[(x[:, None] - spectrum).abs().min(1).values > 1e-9 * scale] if scale else x
    low, high = quadrature.mass_above(x)
    for xi, lo, hi in zip(x.tolist(), low.tolist(), high.tolist(), strict=True):
        assert lo - 1e-9 <= mass(xi) <= hi + 1e-9


def test_tail_bounds_are_sharp():
    """With as many steps as eigenvalues the measure is known exactly."""
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    A = operator_with(values)
    v = RandomDirections(4, A.dtype, A.device, 0).draw()
    low, high = Quadrature.of(Lanczos(A, v).extend(4)).mass_above(torch.tensor([3.0], dtype=torch.float64))
    assert float(low) == pytest.approx(float(high), abs=1e-12)
    assert float(low) == pytest.approx(measure_of(values, A.matrix, v)(3.0), abs=1e-12)


def test_a_radau_rule_has_its_node_and_integrates_polynomials():
    A = operator_with(SPECTRA["uniform"])
    v = RandomDirections(A.size, A.dtype, A.device, 1).draw()
    quadrature = Quadrature.of(Lanczos(A, v).extend(4))
    nodes, weights = quadrature.with_node(torch.tensor([0.3, 1.7], dtype=torch.float64))
    for row, x in enumerate((0.3, 1.7)):
        assert (nodes[row] - x).abs().min() < 1e-12
        power = v
        for degree in range(9):  # exact up to degree 2m = 8
            moment = float((weights[row] * nodes[row] ** degree).sum())
            assert moment == pytest.approx(float(v @ power), rel=1e-10), degree
            power = A.matrix @ power


@pytest.mark.parametrize("probes", [1, 4])
def test_fractions_of_eigenvalues_lie_in_their_bounds(probes):
    """At 99.7 % a threshold: of 30 seeds × 9 thresholds less than one failure is expected."""
    values = torch.cat([torch.zeros(200), torch.logspace(-4, 0, 100)]).double().sort().values
    failures = 0
    for seed in range(30):
        A = operator_with(values, seed)
        found = probe(A, probes, 10, seed=seed)
        tails = SpectralTails(A.size, [p.quadrature for p in found], eigenvalues(A, seed=seed).values, 1e-13)
        x = torch.logspace(-3, -0.02, 9, dtype=torch.float64)
        low, high = (bound / A.size for bound in tails.count_above(x))
        true = (values >= x[:, None]).double().mean(1)
        failures += int(((true < low - 1e-12) | (true > high + 1e-12)).sum())
    assert failures <= 3


@pytest.mark.parametrize("samples", [1, 3, 10])
def test_traces_lie_in_their_intervals(samples):
    """Laurent and Massart's bound is conservative: at 99.7 % no failure is expected in 60 runs, two would be odd."""
    failures = 0
    widths = []
    for seed in range(60):
        values = torch.logspace(-4, 0, 150, dtype=torch.float64)
        A = operator_with(values, seed, positive_semidefinite=True)
        run = eigenvalues(A, seed=seed, min_products=10, max_products=10).run
        t = deflated_trace(probe(A, samples, 1, seed=seed + 1000), run, 1.0)
        failures += float(values.sum()) not in t
        widths.append(t.high - t.low)
    assert failures <= 1
    assert max(widths) < 70 / math.sqrt(samples)  # the trace is about 16


def test_a_trace_outside_the_space_needs_no_further_product():
    A = operator_with(SPECTRA["graded over 1e12"], positive_semidefinite=True)
    run = eigenvalues(A, min_products=20, max_products=20).run
    found = probe(A, 2, 1, seed=5)
    spent = A.products
    estimate = deflated_trace(found, run, 1.0)
    assert A.products == spent
    B = A.matrix - run.basis.T @ (run.basis @ A.matrix)
    B = B - (B @ run.basis.T) @ run.basis
    by_hand = float(run.tridiagonal().trace()) + A.size / 2 * sum(float(p.direction @ B @ p.direction) for p in found)
    assert estimate.value == pytest.approx(by_hand, rel=1e-10)


def test_the_quadrature_of_a_gradient_is_exact_on_polynomials():
    values = SPECTRA["graded over 1e12"]
    A = operator_with(values)
    g = torch.randn(120, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nodes, weights = Quadrature.of(Lanczos(A, g).extend(6)).nodes_and_weights()
    assert float(weights.sum()) == pytest.approx(1, rel=1e-12)
    power = g
    for degree in range(12):
        assert float(g @ g * (weights * nodes**degree).sum()) == pytest.approx(float(g @ power), rel=1e-9), degree
        power = A.matrix @ power


# -- spectra ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=1, max_size=30),
    st.floats(0.05, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_kappa_of_a_whole_spectrum_is_its_definition(entries, fraction):
    values = torch.tensor(sorted(entries), dtype=torch.float64)
    w = WholeConditioning.of(MatrixOperator(torch.diag(values)))
    top = float(values[-1])
    if top <= w.rounding:  # no eigenvalue is known to be positive
        assert not w.kappa(fraction).defined
        return
    kept = values[values > w.theta * top]
    candidates = [top / float(x) for x in kept]
    enough = [k for k in candidates if (kept >= top / k * (1 - 1e-12)).sum() >= fraction * len(kept) - 1e-6]
    assert w.kappa(fraction).value == pytest.approx(min(enough), rel=1e-9)
    assert w.largest.value == pytest.approx(top, rel=1e-12)  # LAPACK scales a tiny matrix, and rounds


def test_a_sampled_spectrum_contains_the_whole_one():
    """Every interval against the dense answer at the same θ, over twenty seeds."""
    generator = torch.Generator().manual_seed(3)
    failures, checks = 0, 0
    for seed in range(20):
        values = torch.cat(
            [torch.randn(250, generator=generator).double() * 1e-3, torch.logspace(-2.5, 0, 50)]
        ).double()
        A = operator_with(values.sort().values, seed)
        s = SampledConditioning.of(A, Effort(extremes=40, count=3, probes=4, probe_steps=20), seed)
        whole = WholeConditioning.of(A)
        kept = values[values > s.theta * values.max()].sort(descending=True).values
        true = {
            "largest": (s.largest, float(values.max())),
            "smallest": (s.smallest, float(values.min())),
            "kappa_mean": (s.kappa_mean, whole.kappa_mean.value),
            "negative": (s.negative_fraction, float((values < -s.theta * values.max()).double().mean())),
            **{
                f"kappa {rho}": (s.kappa(rho), float(values.max() / kept[math.ceil(rho * len(kept)) - 1]))
                for rho in (0.5, 0.9)
            },
        }
        for estimate, answer in true.values():
            checks += 1
            failures += not estimate.low * (1 - 1e-9) - 1e-12 <= answer <= estimate.high * (1 + 1e-9) + 1e-12
        for listed in (*s.top, *s.bottom):
            assert (values - listed.value).abs().min() <= 1e-3
    assert checks == 120
    assert failures <= 2


def test_rounding_of_an_unsymmetric_product_widens_exact_intervals():
    noisy = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    noisy[0, 1] += 1e-3
    assert WholeConditioning.of(MatrixOperator(noisy)).largest.high > 2 + 5e-4


# -- estimates -------------------------------------------------------------------------------------------------------


def test_estimates_say_what_they_know():
    assert str(Estimate.undefined("why")) == "–"
    assert not Estimate.undefined("why").defined
    assert str(Estimate(math.inf, 3, math.inf, "")) == "infinite"
    assert 2.0 in Estimate(1.5, 1.0, 2.0, "")
    assert 2.1 not in Estimate(1.5, 1.0, 2.0, "")
    assert Estimate(1.5, 1.0, 2.0, "").scaled(2).high == 4.0
    assert Estimate(1.0, 0.5, math.inf, "").with_error() == "at least 0.5"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_numbers_read_back_to_three_digits(x):
    assert float(number(x).replace(",", "")) == pytest.approx(x, rel=5.1e-3, abs=1e-300)


def test_a_basis_of_very_long_float32_vectors_stays_orthonormal():
    """A = I + e₁e₁ᵀ/1000 in a million dimensions: with plain float32 sums a Ritz value of 271 came out."""
    n = 1_000_000
    diagonal = torch.ones(n)
    diagonal[0] = 1.001

    class Almost(MatrixOperator):
        def __init__(self) -> None:
            super().__init__(torch.eye(1))
            self.size = n

        def _multiply(self, v):
            return diagonal * v

    A = Almost()
    directions = RandomDirections(n, torch.float32, torch.device("cpu"), 0)
    run = Lanczos(A, directions.draw(), restart=directions).extend(12)
    basis = run.basis.double()
    assert (basis @ basis.T - torch.eye(12, dtype=torch.float64)).abs().max() < 1e-5
    ritz = torch.linalg.eigvalsh(run.tridiagonal())
    assert 0.9999 < float(ritz[0]) <= float(ritz[-1]) < 1.0011
