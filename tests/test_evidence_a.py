"""The arithmetic of the claims about P, and that a broken P is seen."""

import math
from functools import partial

import pytest
import torch

import wellcond as wc
from wellcond.evidence import Runs
from wellcond.evidence.claims import best_diagonal, change_of_variables, conditioning, row_norms
from wellcond.evidence.claims.best_diagonal import BestDiagonal
from wellcond.evidence.claims.change_of_variables import ChangeOfVariables
from wellcond.evidence.claims.conditioning import Conditioning, kappas
from wellcond.evidence.claims.row_norms import RowNorms, log_correlation
from wellcond.evidence.diagonal_scaling import best_scaling, condition
from wellcond.linalg import MatrixOperator

f64 = partial(torch.tensor, dtype=torch.float64)


def powered(P: wc.Preconditioner, power: float) -> wc.DiagonalPreconditioner:
    """A broken P: each entry of a diagonal one to a power."""
    assert isinstance(P, wc.DiagonalPreconditioner)
    return wc.DiagonalPreconditioner(P.parameters, [s**power for s in P.scales])


def test_best_scaling_of_two_by_two_is_jacobi():
    c = 0.9
    best = best_scaling(f64([[4.0, c * 60], [c * 60, 900.0]]))
    assert best.kappa == pytest.approx((1 + c) / (1 - c), rel=1e-6)
    assert best.bound == pytest.approx(best.kappa, rel=1e-6)


def test_best_scaling_of_blocks_is_that_of_the_worst_block():
    blocks = [f64([[1.0, c], [c, 1.0]]) for c in (0.5, 0.9)]
    scale = f64([1.0, 100.0, 0.01, 7.0])
    best = best_scaling(scale[:, None] * torch.block_diag(*blocks) * scale)
    assert best.bound <= best.kappa == pytest.approx(19, rel=1e-2)
    assert best.bound == pytest.approx(19, rel=1e-2)


def test_best_scaling_beats_random_search_and_its_bound_is_one():
    torch.manual_seed(0)
    A = torch.randn(4, 6, dtype=torch.float64)
    H = A @ A.T
    best = best_scaling(H)
    jacobi = H.diagonal().rsqrt()
    tried = [condition(H, jacobi * torch.exp(0.3 * torch.randn(4, dtype=torch.float64))) for _ in range(500)]
    tried += [condition(H, torch.exp(2 * torch.randn(4, dtype=torch.float64))) for _ in range(500)]
    assert best.bound * (1 - 1e-9) <= best.kappa <= min(tried)
    assert best.bound == pytest.approx(best.kappa, rel=1e-2)


def test_log_correlation_of_powers_and_within_groups():
    x = torch.logspace(0, 3, 8, dtype=torch.float64)
    assert log_correlation(x, 5 * x**2) == pytest.approx(1)
    assert log_correlation(x, 1 / x) == pytest.approx(-1)
    shifted = x * f64([1.0] * 4 + [1e-4] * 4)  # groups apart hide what holds in each of them
    groups = torch.tensor([0] * 4 + [1] * 4)
    assert log_correlation(x, shifted) < 0
    assert log_correlation(x, shifted, groups) == pytest.approx(1)


def test_log_correlation_leaves_out_what_is_zero():
    x, y = f64([1.0, 2.0, 4.0, 1e-9]), f64([1.0, 4.0, 16.0, 1.0])
    assert log_correlation(x, y) == pytest.approx(1)


def test_kappas_of_a_known_spectrum():
    found = kappas(wc.conditioning(MatrixOperator(torch.diag(f64([1.0, 2.0, 9.0])))))
    assert (found["mean"], found["half"], found["most"]) == pytest.approx((2.25, 4.5, 9))


def test_kappa_effective_of_a_known_descent():
    x = torch.diag(f64([1.0, 10.0]))  # with the targets 1: λ = 1/2 and 50, the whole loss is to be won
    model = torch.nn.Linear(2, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    problem = wc.Problem(
        model, lambda out, y: (out - y).square().mean() / 2, (x, torch.ones(2, 1, dtype=torch.float64))
    )
    steps = 0
    while 0.5 * (1 - 0.5 / 50) ** (2 * steps) > 0.01:  # half of the loss is on each direction; one step wins 50's
        steps += 1
    found = kappas(wc.conditioning(wc.GaussNewton(problem)))["effective"]
    assert found == pytest.approx(2 * steps / math.log(100), abs=2 * 1.5 / math.log(100))  # bounds are a step apart


def test_a_step_that_is_not_ppt_fails_the_change_of_variables(monkeypatch):
    claim = ChangeOfVariables()
    assert claim.holds(Runs(claim.cases[0], [claim.measure(claim.cases[0], 0, True)]))
    right = change_of_variables.wc.precondition
    monkeypatch.setattr(change_of_variables.wc, "precondition", lambda o, P: right(o, P @ P))
    assert not claim.holds(Runs(claim.cases[0], [claim.measure(claim.cases[0], 0, True)]))


@pytest.mark.parametrize(
    ("claim", "module", "case", "power"),
    [
        (RowNorms(), row_norms, "digits, MLP: RMSProp, batches of 32", -1),
        (Conditioning(), conditioning, "diabetes, MLP: Adam", -1),
        (BestDiagonal(), best_diagonal, "breast cancer, logistic: Adam", 0.25),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_a_broken_preconditioner_fails(claim, module, case, power, monkeypatch):
    assert claim.holds(Runs(case, [claim.measure(case, 0, True)]))
    right = module.stops

    def broken(*args, **kwargs):
        return ((problem, powered(P, power)) for problem, P in right(*args, **kwargs))

    monkeypatch.setattr(module, "stops", broken)
    assert not claim.holds(Runs(case, [claim.measure(case, 0, True)]))
