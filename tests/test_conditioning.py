"""The figures of theory section 2.2, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from tests.problems import make, random_spectrum, train
from wellcond.condition_numbers import Effort, conditioning
from wellcond.curvature import GaussNewton, Hessian
from wellcond.linalg import MatrixOperator
from wellcond.preconditioners import preconditioner_of
from wellcond.problem import Problem


def steps_by_hand(values: torch.Tensor, weights: torch.Tensor, remaining: float = 0.01) -> int:
    """Plain gradient descent with step 1/λ_max on the quadratic model, step by step."""
    reducible = total = (weights / (2 * values)).sum()
    steps, factor = 0, torch.ones_like(values)
    while reducible > remaining * total:
        factor *= (1 - values / values.max()) ** 2
        reducible = (weights / (2 * values) * factor).sum()
        steps += 1
    return steps


def psd(values: torch.Tensor, gradient: torch.Tensor, seed: int = 0) -> MatrixOperator:
    return MatrixOperator(random_spectrum(values, seed), positive_semidefinite=True, gradient=gradient)


@pytest.mark.parametrize("decades", [0.5, 1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_kappa_effective_is_the_number_of_steps_of_gradient_descent(decades, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.logspace(-decades, 0, 30, dtype=torch.float64) * 3
    matrix = random_spectrum(values, seed)
    g = torch.randn(30, dtype=torch.float64, generator=generator)
    true, U = torch.linalg.eigh(matrix)
    N = steps_by_hand(true, (U.T @ g) ** 2)
    c = conditioning(MatrixOperator(matrix, positive_semidefinite=True, gradient=g))
    assert c.kappa_effective.value == pytest.approx(max(1.0, 2 * N / math.log(100)), abs=1e-9)
    assert c.outside_range.value < 1e-20
    # The same from a Lanczos run that exhausts the space, and a lower bound from one that does not.
    exhausted = conditioning(MatrixOperator(matrix, positive_semidefinite=True, gradient=g), dense_limit=0)
    assert exhausted.kappa_effective.value == pytest.approx(c.kappa_effective.value, abs=1)
    short = Effort(gradient_steps=5)
    partial = conditioning(MatrixOperator(matrix, positive_semidefinite=True, gradient=g), dense_limit=0, effort=short)
    assert partial.kappa_effective.low <= c.kappa_effective.value


def test_kappa_effective_is_the_condition_number_where_the_gradient_sits_on_the_flattest_direction():
    values = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    g = torch.tensor([1.0, 1e-6], dtype=torch.float64)
    c = conditioning(MatrixOperator(torch.diag(values), positive_semidefinite=True, gradient=g))
    assert c.kappa_effective.value == pytest.approx(1000, rel=2e-3)  # (1 − 1/κ)^2N = 0.01 at N ≈ κ ln(100)/2
    assert c.kappa_star.value == pytest.approx(1000)


def test_a_gradient_outside_the_range_makes_it_infinite():
    values = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    g = torch.ones(3, dtype=torch.float64)
    for limit in (0, 10):
        c = conditioning(MatrixOperator(torch.diag(values), positive_semidefinite=True, gradient=g), dense_limit=limit)
        assert math.isinf(c.kappa_effective.value)
        assert c.outside_range.value == pytest.approx(1 / 3, rel=1e-6)


def test_mean_star_and_negative_fraction_by_definition():
    values = torch.tensor([-2.0, -1e-9, 0.0, 1e-3, 0.5, 4.0], dtype=torch.float64)
    c = conditioning(MatrixOperator(random_spectrum(values)))
    assert c.kappa_mean.value == pytest.approx(6 * 4 / float(values.abs().sum()))
    assert c.kappa_star.value == pytest.approx(4 / 1e-3, rel=1e-6)
    assert c.negative_fraction.value == pytest.approx(1 / 6)  # −1e-9 is under θ = 1e-6 of the largest
    assert c.kappa(0.5).value == pytest.approx(4 / 0.5)
    assert c.kappa(1.0).value == pytest.approx(4 / 1e-3, rel=1e-6)
    assert not c.kappa_effective.defined
    for bad in (0, -1, 1.1):
        with pytest.raises(ValueError, match="fraction"):
            c.kappa(bad)


def test_a_matrix_without_positive_curvature_has_no_condition_number():
    for limit in (0, 100):
        c = conditioning(MatrixOperator(-torch.eye(40, dtype=torch.float64)), dense_limit=limit)
        assert not c.kappa_mean.defined
        assert not c.kappa(0.5).defined
        assert not c.negative_fraction.defined
        assert c.largest.value == pytest.approx(-1)


def trained(name: str, seed: int):
    case = make(name, seed)
    optimizer = torch.optim.Adam(case.model.parameters(), lr=1e-2)
    train(case, optimizer, 20)
    return Problem(case.model, case.loss_fn, case.data), preconditioner_of(optimizer)


@pytest.mark.parametrize("name", ["tanh MLP", "ReLU MLP", "convolution", "layer norm", "attention"])
def test_intervals_contain_the_dense_answers(name):
    """Four curvatures × five seeds × all figures that both ways know; each interval is at 99.7 %."""
    failures, checks = [], 0
    for seed in range(5):
        problem, P = trained(name, seed)
        for kind in (Hessian, GaussNewton):
            plain = kind(problem)
            for operator in (plain, plain.preconditioned(P)):
                dense = conditioning(operator)
                effort = Effort(extremes=22, probes=4, probe_steps=12, gradient_steps=8)
                sampled = conditioning(operator, dense_limit=0, effort=effort, seed=seed)
                spectrum = dense.spectrum
                kept = spectrum[spectrum > sampled.theta * spectrum[-1]].flip(0)
                answers = {
                    "largest": (sampled.largest, dense.largest.value),
                    "smallest": (sampled.smallest, dense.smallest.value),
                    "kappa_mean": (sampled.kappa_mean, dense.kappa_mean.value),
                    "kappa_effective": (sampled.kappa_effective, dense.kappa_effective.value),
                    "negative": (
                        sampled.negative_fraction,
                        float((spectrum < -sampled.theta * spectrum[-1]).double().mean()),
                    ),
                    **{
                        f"kappa({r})": (sampled.kappa(r), float(kept[0] / kept[math.ceil(r * len(kept)) - 1]))
                        for r in (0.5, 0.9)
                    },
                }
                for figure, (estimate, answer) in answers.items():
                    if figure == "smallest" and kind is GaussNewton:
                        continue  # reported as a Ritz value: the end of a semidefinite spectrum is known to be ≥ 0
                    slack = 1e-9 * abs(answer) + 1e-9 * float(spectrum[-1])
                    checks += 1
                    if not estimate.low - slack <= answer <= estimate.high + slack:
                        failures.append((figure, kind.__name__, seed, estimate, answer))
    assert checks == 5 * (2 * 7 + 2 * 6)
    assert len(failures) <= 1, failures


def test_the_cost_is_what_was_asked_for():
    problem, _ = trained("tanh MLP", 0)
    operator = GaussNewton(problem)
    effort = Effort(extremes=21, count=2, probes=3, probe_steps=4, gradient_steps=6)
    c = conditioning(operator, dense_limit=0, effort=effort)
    assert c.products == operator.products == 21 + 3 * 4 + 6
    H = Hessian(problem)
    c = conditioning(H, dense_limit=0, effort=effort, effective=False)
    assert c.products == H.products == 21 + 3 * 4
    assert conditioning(Hessian(problem), effective=False).products == problem.size


def test_kappa_effective_takes_one_run_at_the_gradient_and_one_for_the_largest_eigenvalue():
    """Each stops where the Krylov space ends; for a Hessian both are products with Gauss-Newton."""
    problem, P = trained("tanh MLP", 0)
    effort = Effort(extremes=25, count=2, probes=3, probe_steps=4, gradient_steps=6)
    for H in (Hessian(problem), Hessian(problem).preconditioned(P)):
        c = conditioning(H, dense_limit=0, effort=effort)
        assert H.products == 25 + 3 * 4
        assert c.products == H.products + 25 + 6
        G = H.semidefinite()
        assert G is not None
        assert c.kappa_effective.low <= conditioning(G).kappa_effective.value


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_a_damped_curvature_is_conditioned_as_its_spectrum_says(kind):
    problem, P = trained("layer norm", 1)
    plain = kind(problem).preconditioned(P)
    spectrum = conditioning(plain, effective=False).spectrum
    delta = 0.05 * float(spectrum[-1])
    operator = plain + delta
    dense, sampled = conditioning(operator), conditioning(operator, dense_limit=0)
    assert float((dense.spectrum - spectrum - delta).abs().max()) < 1e-12
    for figure in ("largest", "smallest", "kappa_mean", "kappa_effective"):
        assert getattr(dense, figure).value in getattr(sampled, figure)
    if kind is GaussNewton:
        assert dense.kappa_star.value == pytest.approx(float((spectrum[-1] + delta) / (spectrum[0] + delta)), rel=1e-6)
        assert dense.kappa_effective.value <= dense.kappa_star.value
        assert dense.negative_fraction.value == 0


def test_in_single_precision_intervals_hold_for_the_exact_matrix():
    values = torch.cat([torch.logspace(-5, -2, 150), torch.logspace(-1.5, 1, 10)]).double()
    for semidefinite in (True, False):
        signed = values if semidefinite else torch.where(torch.arange(160) % 3 == 0, -values / 20, values)
        A = random_spectrum(signed)
        exact = conditioning(MatrixOperator(A, positive_semidefinite=semidefinite))
        single = MatrixOperator(A.float(), positive_semidefinite=semidefinite)
        for limit in (0, 1000):
            c = conditioning(single, dense_limit=limit, effort=Effort(extremes=40, probe_steps=10))
            for figure in ("largest", "smallest", "kappa_mean"):
                assert getattr(exact, figure).value in getattr(c, figure), (figure, limit, semidefinite)
            if limit == 0:
                kept = exact.spectrum[exact.spectrum >= c.theta * exact.spectrum[-1]].flip(0)
                assert float(kept[0] / kept[math.ceil(0.5 * len(kept)) - 1]) in c.kappa(0.5)
                assert float((exact.spectrum < -c.theta * exact.spectrum[-1]).double().mean()) in c.negative_fraction


def test_eigenvalues_known_one_by_one_are_counted_exactly():
    """Ten large eigenvalues over a thousandth of their size: no random direction needs to say how many there are."""
    values = torch.cat([torch.linspace(-1e-3, 1e-3, 390), torch.linspace(1, 3, 10)]).double()
    c = conditioning(MatrixOperator(random_spectrum(values)), dense_limit=0)
    low, high = c.counts_above(torch.tensor([0.03, 0.9, 2.5], dtype=torch.float64))
    assert low.tolist() == high.tolist() == [10, 10, 3]
    for rho in (0.5, 0.9):
        kept = values.flip(0)[:10]
        assert c.kappa(rho).high < 1.1 * float(kept[0] / kept[math.ceil(rho * 10) - 1])
    assert c.negative_fraction.high == 0


def test_results_depend_on_the_seed_alone():
    problem, _ = trained("tanh MLP", 0)
    first, again, other = (conditioning(Hessian(problem), dense_limit=0, seed=s) for s in (1, 1, 2))
    assert first.kappa_mean == again.kappa_mean != other.kappa_mean
    assert first.kappa(0.5) == again.kappa(0.5)
