"""The claims about regularization: their arithmetic on known answers, and broken preconditioners that they notice."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import wellcond as wc
from wellcond.evidence import Claim, Runs, workload
from wellcond.evidence.claim import not_above_zero
from wellcond.evidence.claims import adamw, l2_generalization, l2_spectrum, rest_point, sparsity, weighted_lasso
from wellcond.evidence.claims.l2_spectrum import penalized
from wellcond.evidence.claims.rest_point import PARTS, Setting, averages, settle
from wellcond.evidence.claims.weighted_lasso import lasso
from wellcond.evidence.diagonal_scaling import condition
from wellcond.evidence.workloads import one_layer
from wellcond.preconditioners import reading_for


def holds(claim: Claim, case: str) -> bool:
    """The claim's rule on a quick run with one seed."""
    torch.manual_seed(0)
    return claim.holds(Runs(case, [claim.measure(case, 0, True)]))


def squared_root_of(optimizer: str, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have P² read off an optimizer for P."""
    reading = type(reading_for(getattr(torch.optim, optimizer)))
    monkeypatch.setattr(reading, "root", lambda self, state, group: state[entry])


class TestWeightedLasso:
    def test_lasso_on_orthonormal_features_is_soft_thresholding(self) -> None:
        generator = np.random.default_rng(0)
        x = 7 * np.linalg.qr(generator.normal(size=(49, 4)))[0]
        y, weights = generator.normal(size=49), np.array([0.1, 0.2, 0.3, 5.0])
        least_squares = x.T @ y / 49
        expected = np.sign(least_squares) * np.maximum(abs(least_squares) - weights / 2, 0)
        assert np.allclose(lasso(x, y, weights), expected, atol=1e-12)
        assert 0 < np.count_nonzero(expected) < 4

    def test_logistic_lasso_is_stationary(self) -> None:
        generator = np.random.default_rng(1)
        x = generator.normal(size=(200, 6))
        y = (x[:, 0] - x[:, 1] + generator.normal(size=200) > 0).astype(float)
        weights = np.linspace(0.05, 0.2, 6)
        p = lasso(x, y, weights)
        gradient = x.T @ (1 / (1 + np.exp(-x @ p)) - y) / 200
        assert np.allclose(gradient[p != 0], -np.sign(p[p != 0]) * weights[p != 0], atol=1e-6)
        assert (abs(gradient) <= weights + 1e-6).all()
        assert 2 <= np.count_nonzero(p) < 6
        assert np.array_equal(p, lasso(x, y, weights))

    def test_relative_distance(self) -> None:
        assert weighted_lasso.relative_distance(np.array([3.0, 8.0]), np.array([3.0, 4.0])) == 0.8

    def test_reading_p_squared_for_p_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        claim = weighted_lasso.WeightedLasso()
        assert holds(claim, claim.cases[0])
        squared_root_of("RMSprop", "square_avg", monkeypatch)
        assert not holds(claim, claim.cases[0])


class TestL2Spectrum:
    def test_lifts_of_a_linear_model(self) -> None:
        work = one_layer("diabetes", 0)
        model = work.model(0)
        (w,) = model.parameters()
        scale = torch.logspace(-1, 1, 10, dtype=torch.float64)[None]
        P = wc.DiagonalPreconditioner([w], [scale])
        x = work.train[0]
        Hz = scale.T * (2 * x.T @ x / len(x)) * scale
        plain = torch.linalg.eigvalsh(Hz)
        intrinsic = l2_spectrum.lifts(plain, penalized(work, model, 0.5, P.diagonal().square()), P)
        assert torch.allclose(intrinsic, torch.full_like(plain, 0.5), rtol=1e-9)
        original = l2_spectrum.lifts(plain, penalized(work, model, 0.5, torch.ones_like(P.diagonal())), P)
        expected = torch.linalg.eigvalsh(Hz + 0.5 * torch.diag(scale[0] ** 2)) - plain
        assert torch.allclose(original, expected, rtol=1e-9)

    def test_condition(self) -> None:
        Q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
        assert math.isclose(condition(Q * torch.tensor([2.0, 3.0, 8.0]) @ Q.T), 4.0)

    def test_an_adjoint_of_p_squared_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        claim = l2_spectrum.L2Spectrum()
        assert holds(claim, "breast cancer, MLP")
        monkeypatch.setattr(wc.DiagonalPreconditioner, "adjoint", lambda P, g: P.apply(P.apply(g)))
        assert not holds(claim, "breast cancer, MLP")


class TestGeneralization:
    @pytest.mark.parametrize(
        ("advantages", "expected"),
        [([-0.1, -0.2], True), ([0.1, 0.2], False), ([0.1, 0.3, -0.2], True), ([0.1, 0.1, 0.101], False)],
    )
    def test_not_worse_by_two_standard_errors(self, advantages: list[float], expected: bool) -> None:
        assert not_above_zero(np.array(advantages)) is expected

    def test_losses_are_those_of_torchs_own_weight_decay(self) -> None:
        work = workload("wine, MLP")
        on_test = partial(l2_generalization.loss_on_test, work, torch.optim.Adam, "original", steps=20, seed=0)
        ours = {decay: on_test(decay) for decay in (0.0, 0.1)}
        for weight_decay, loss in ours.items():
            model = work.model(0)
            weights = [p for p in model.parameters() if p.dim() == 2]
            groups = [{"params": weights}, {"params": [p for p in model.parameters() if p.dim() == 1]}]
            optimizer = torch.optim.Adam([groups[0] | {"weight_decay": weight_decay}, groups[1]])
            work.descend(model, optimizer, 20, batch=32)
            assert math.isclose(float(work.loss(model, test=True).detach()), loss, rel_tol=1e-12)
        assert ours[0.0] != ours[0.1]


class TestAdamW:
    def test_distances(self) -> None:
        work = workload("wine, MLP")
        assert max(adamw.distances(work, "Adam", "intrinsic", 0, 20)) <= 1e-12
        assert max(adamw.distances(work, "RMSprop", "intrinsic", 0, 20)) <= 1e-12
        assert min(adamw.distances(work, "Adam", "original", 0, 20)) > 1e-6

    def test_a_wrong_step_of_the_penalty_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(self, group, step):
            return group["lr"] * (1 + 1e-5)

        monkeypatch.setattr(type(reading_for(torch.optim.Adam)), "penalty_rate", wrong)
        assert max(adamw.distances(workload("wine, MLP"), "Adam", "intrinsic", 0, 20)) > 1e-9

    def test_the_rule(self) -> None:
        good = {"Adam": 0.0, "Adagrad": 1e-12, "RMSprop": 0.0, "original": 0.5}
        claim = adamw.AdamWIsIntrinsic()
        assert claim.holds(Runs("", [good, good]))
        for broken in ({"Adam": 1e-8}, {"RMSprop": 1e-8}, {"original": 0.0}):
            assert not claim.holds(Runs("", [good, good | broken]))


class TestSparsity:
    def test_zeros_for_free(self) -> None:
        shares, accuracies = [0.0, 0.4, 0.8, 1.0], [0.9, 0.95, 0.89, 0.1]
        assert sparsity.zeros_for_free(shares, accuracies, 0.92) == 0.6
        assert sparsity.zeros_for_free(shares[::-1], accuracies[::-1], 0.92) == 0.6
        assert sparsity.zeros_for_free(shares, accuracies, 0.05) == 1.0
        assert sparsity.zeros_for_free([0.0, 0.5], [0.9, 0.2], 0.9) == 0.0

    def test_l1_in_the_loss_is_the_users_own_and_makes_no_zeros(self) -> None:
        work = workload("wine, MLP")
        model = work.model(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        weights = [p for p in model.parameters() if p.dim() == 2]
        users_own = replace(
            work, loss_fn=lambda out, y: work.loss_fn(out, y) + 0.1 * sum(w.abs().sum() for w in weights)
        )
        users_own.descend(model, optimizer, 50, batch=32)
        assert sparsity.train(work, "loss", 0.1, 50, 0) == (0.0, work.accuracy(model))
        assert sparsity.train(work, "intrinsic", 0.1, 50, 0)[0] > 0.2

    def test_the_rule(self) -> None:
        claim = sparsity.SparsityOfL1()
        good = {"loss": 0.0, "intrinsic": 0.6, "original": 0.6, "euclidean": 0.5}
        assert claim.holds(Runs("", [good, good]))
        for broken in ({"loss": 1e-4}, {"intrinsic": 0.55}, {"original": 0.7}):
            assert not claim.holds(Runs("", [good | broken, good | broken]))


class TestRestPoint:
    @pytest.mark.parametrize("regime", ["AdamW, full batch", "full batch, small steps", "full batch, large steps"])
    def test_over_prediction_is_1_where_the_theory_rests(self, regime: str) -> None:
        tau = 0.3
        p, inverse = torch.tensor([1 / tau, -1 / tau]), torch.tensor([2.0, 5.0])
        g = tau**2 * torch.tensor([1.0, -1.0]) if "small" in regime else tau * inverse
        assert torch.allclose(rest_point.over_prediction(regime, p, g, inverse, tau), torch.ones(2))
        assert {case.split(": ")[0] for case in rest_point.CASES} >= {regime}

    def test_the_rate_falls_to_the_last_in_equal_factors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        work = one_layer("diabetes", 0)
        optimizer = torch.optim.SGD(work.model(0).parameters(), lr=1.0)
        rates: list[float] = []
        monkeypatch.setattr(type(work), "descend", lambda *args, **how: rates.append(optimizer.param_groups[0]["lr"]))
        settle(work, work.model(0), optimizer, Setting(0.3, 1.0, 0.01, 60), 0, 3)
        assert np.allclose(rates, np.geomspace(1.0, 0.01, PARTS), rtol=1e-12)

    def test_averages_of_an_optimizer_that_stands_still(self) -> None:
        work = one_layer("diabetes", 0)
        model = work.model(0)
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.9, 0.99), eps=0.0)
        work.descend(model, optimizer, 1)
        optimizer.param_groups[0]["lr"] = 0.0
        (w,) = model.parameters()
        with torch.no_grad():
            w[0, 3] = 0.0
        setting, problem = Setting(0.3, 0.1, 0.0, 0, averaged=4), work.problem(model)
        p, g, inverse = averages(work, model, optimizer, [w], setting, 0)
        assert torch.equal(p, w.detach()[0])
        assert torch.allclose(g, problem.gradient(), rtol=1e-12)
        work.descend(model, optimizer, 2000)  # at rest v̂ = g²
        _, g, inverse = averages(work, model, optimizer, [w], setting, 0)
        assert torch.allclose(inverse, g.abs().sqrt(), rtol=1e-3)

    def test_reading_p_squared_for_p_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        claim, case = rest_point.RestPoint(), "full batch, small steps: diabetes, linear model"
        assert holds(claim, case)
        squared_root_of("Adam", "exp_avg_sq", monkeypatch)
        assert not holds(claim, case)
