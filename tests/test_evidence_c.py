"""The claims about normalization, the edge of stability and the forecast: their arithmetic, and what breaks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import wellcond as wc
from wellcond.evidence import Claim, Runs, Workload, workload
from wellcond.evidence.claim import pairs_alike
from wellcond.evidence.claims import block_bound, bnp, edge, forecast, normalization
from wellcond.evidence.claims.block_bound import curvature_by_outputs, row_blocks
from wellcond.evidence.claims.bnp import with_batch_norm
from wellcond.evidence.claims.normalization import descents, normalized, steps_to
from wellcond.stability import edge as edge_of_stability


def measured(claim: Claim, case: str, seeds: int = 1) -> Runs:
    return Runs(case, [claim.measure(case, seed, quick=True) for seed in range(seeds)])


def regression(x: Tensor, y: Tensor, model: Callable[[], nn.Module]) -> Workload:
    return Workload(model, nn.MSELoss(), (x, y), (x, y))


@pytest.mark.parametrize("kind", ["standardized inputs", "batch norm"])
@pytest.mark.parametrize("data", ["wine, MLP", "digits, convolution"])
def test_normalized_networks_compute_the_same(data: str, kind: str) -> None:
    work = workload(data, standardized=False, examples=50)
    model = work.model(0)
    x = work.train[0]
    if "convolution" in data:
        for layer in model:
            if isinstance(layer, nn.Conv2d):
                layer.padding = (0, 0)
        model[-1] = nn.Linear(8, 10).double()
    changed = normalized(model, kind, x)
    # Batch norm's ε of 1e-5 beside variances of 0.01 and more.
    torch.testing.assert_close(changed(x), model(x), rtol=1e-2, atol=1e-2)
    hidden = [m for m in changed if isinstance(m, wc.Standardize | nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(hidden) == (1 if kind == "standardized inputs" else 3)


def test_layer_norm_is_put_in_front_of_every_layer() -> None:
    work = workload("wine, MLP", standardized=False, examples=50)
    changed = normalized(work.model(0), "layer norm", work.train[0])
    rows = changed[0](work.train[0])
    torch.testing.assert_close(rows.mean(1), torch.zeros(50, dtype=rows.dtype), rtol=0, atol=1e-12)
    assert sum(isinstance(m, nn.GroupNorm) for m in changed) == 3


def test_curves_are_those_of_gradient_descent() -> None:
    x = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    work = regression(x, 0 * x, lambda: nn.Linear(1, 1, bias=False))
    model = work.model(0)
    curves = descents(work, model, normalization.RATES, steps=5)
    start = float(model.weight.detach()) ** 2
    for rate, curve in zip(normalization.RATES, curves, strict=True):  # L = w², w ← (1 − 2α)w
        expected = [start * min((1 - 2 * rate) ** (2 * n) for n in range(k + 1)) for k in range(6)]
        assert curve.tolist() == pytest.approx(expected)
    # α = 10^(−1/2) leaves 0.1350 of the loss in a step, 10^(−1) leaves 0.64.
    assert steps_to(0.14 * start, curves) == 1
    assert steps_to(0.0, curves) == float("inf")


def test_standardizing_by_the_inverse_breaks_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, case = normalization.Normalization(), "diabetes, MLP: standardized inputs"
    assert claim.holds(measured(claim, case))
    right = wc.standardize

    def inverse(data: Any) -> wc.Standardize:
        made = right(data)
        return wc.Standardize(made.mean, 1 / made.scale, dim=made.dim)

    monkeypatch.setattr(wc, "standardize", inverse)
    assert not claim.holds(measured(claim, case))


def test_bound_is_reached_by_a_linear_layer_under_squared_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 4, dtype=torch.float64) * torch.tensor([1.0, 2.0, 5.0, 0.3]) + 1
    work = regression(x, x[:, :1], lambda: nn.Sequential(nn.Linear(4, 1)))
    found = block_bound.figures(work, work.model(0))
    H = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    standardized = torch.cat([torch.ones_like(x[:, :1]), (x - x.mean(0)) / x.std(0, correction=0)], 1)
    expected = [float(torch.linalg.cond(h)) ** 2 for h in (H, standardized)]
    assert found["squares"] == pytest.approx(expected)
    assert found["blocks"] == pytest.approx(expected)
    assert (found["tightest"], found["looseness"], found["definite"]) == pytest.approx((1, 1, 1))
    assert found["ranked"] == 1


@pytest.mark.parametrize("data", ["digits, MLP", "digits, convolution"])
def test_blocks_are_made_of_inputs_and_curvature_by_outputs(data: str) -> None:
    work = workload(data, examples=20, width=8)
    model = work.model(0)
    assert isinstance(model, nn.Sequential)
    place = next(i for i, m in enumerate(model) if i > 1 and isinstance(m, nn.Linear | nn.Conv2d))
    S = curvature_by_outputs(work, model, place)
    out = model[: place + 1](work.train[0])
    assert S.shape == (out.shape[1], len(out), out[0, 0].numel())
    # The trace of a bias's curvature is the sum of S over everything, when positions don't interact.
    blocks = row_blocks(model[place], wc.layer_block(work.problem(model), str(place)).dense())
    if out.ndim == 2:
        torch.testing.assert_close(blocks[:, 0, 0], S.sum((1, 2)) / len(out))
    torch.testing.assert_close(blocks, blocks.mT)


def test_a_normalization_applied_twice_breaks_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, case = block_bound.BlockBound(), "diabetes, MLP, ReLU"
    assert claim.holds(measured(claim, case))
    right = wc.layer_block

    def twice(problem: wc.Problem, layer: Any, normalization: str | None = None) -> Any:
        plain: Any = right(problem, layer)
        if normalization is None:
            return plain
        P = cast(Any, right(problem, layer, normalization)).P
        return plain.preconditioned(P @ P)

    monkeypatch.setattr(wc, "layer_block", twice)
    assert not claim.holds(measured(claim, case))


def test_batch_norm_stands_before_hidden_activations() -> None:
    kinds = {"digits, MLP": nn.BatchNorm1d, "digits, convolution": nn.BatchNorm2d}
    for name, kind in kinds.items():
        model = workload(name).model(0)
        assert isinstance(model, nn.Sequential)
        changed = list(with_batch_norm(model))
        for i, layer in enumerate(changed):
            assert isinstance(layer, kind) == (i + 1 < len(changed) and isinstance(changed[i + 1], nn.ReLU))


@pytest.mark.parametrize(
    ("batch", "over_plain", "over_batch_norm", "held"),
    [
        (64, 0.9, 1.4, True),
        (64, 0.9, 1.6, False),
        (4, 0.9, 1.1, False),
        (1, 0.9, float("nan"), True),
        (4, 1.1, 0.5, False),
    ],
)
def test_rule_of_bnp(batch: int, over_plain: float, over_batch_norm: float, held: bool) -> None:
    figures = {"over plain": over_plain, "over batch norm": over_batch_norm}
    assert bnp.BNP().holds(Runs(f"digits, MLP, batches of {batch}", [figures, figures])) == held


def test_squared_error_is_on_the_classes_indicators() -> None:
    work = workload("wine, MLP")
    changed = edge.with_loss("wine, MLP, squared error", examples=400, seed=0)
    assert changed.train[1].shape == (len(work.train[1]), 3)
    torch.testing.assert_close(changed.train[1].argmax(1), work.train[1])
    assert float(changed.train[1].sum(1).std()) == 0


def test_squaring_rmsprops_p_breaks_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, case = edge.Edge(), "RMSProp, 2/α: diabetes, MLP, squared error"
    assert claim.holds(measured(claim, case))
    right = edge_of_stability.own_preconditioner_of

    def squared(optimizer: Any) -> wc.DiagonalPreconditioner:
        P = right(optimizer)
        return wc.DiagonalPreconditioner(P.parameters, [s.square() for s in P.scales])

    monkeypatch.setattr(edge_of_stability, "own_preconditioner_of", squared)
    assert not claim.holds(measured(claim, case))


def test_pairs_alike_against_counting() -> None:
    x, y = [3.0, 1.0, 2.0, 2.0], [1.0, 2.0, 2.0, 0.0]
    pairs = [(a, b) for a in range(4) for b in range(a)]
    same = [
        p for p in pairs if (x[p[0]] > x[p[1]]) == (y[p[0]] > y[p[1]]) and x[p[0]] != x[p[1]] and y[p[0]] != y[p[1]]
    ]
    tied = [p for p in pairs if x[p[0]] == x[p[1]] or y[p[0]] == y[p[1]]]
    assert pairs_alike(list(zip(x, y, strict=True))) == (len(same), 6 - len(tied))


def test_forecast_is_right_on_a_quadratic() -> None:
    work = workload("diabetes, MLP", standardized=False)
    work = replace(work, build=lambda: nn.Linear(10, 1))
    model, P = forecast.point_of_training(work, 0, 20)
    before = [p.clone() for p in model.parameters()]
    predicted = wc.forecast(work.problem(model), P, steps=forecast.STEPS)
    for name, candidate in P.items():
        loss = forecast.trained(work, model, candidate, predicted[name].learning_rate)
        assert loss == pytest.approx(float(predicted[name].losses[-1]), rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_training_with_p_squared_breaks_the_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = torch.logspace(-1, 1, 8, dtype=torch.float64)

    def quadratic(name: str, *, seed: int, **_: Any) -> Workload:
        x = torch.randn(80, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scales
        return regression(x, (x / scales).sum(1, keepdim=True), lambda: nn.Linear(8, 1))

    monkeypatch.setattr(forecast, "workload", quadratic)
    claim, case = forecast.Forecast(), forecast.Forecast.cases[0]
    assert measured(claim, case).mean("right") == 1
    right = wc.precondition
    monkeypatch.setattr(wc, "precondition", lambda optimizer, P: right(optimizer, P @ P))
    assert not claim.holds(measured(claim, case))


def test_preconditioning_twice_breaks_bnp(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, case = bnp.BNP(), "digits as they are, MLP, batches of 1"
    assert claim.holds(measured(claim, case))
    right = wc.precondition
    monkeypatch.setattr(wc, "precondition", lambda optimizer, P: right(optimizer, P @ P))
    assert not claim.holds(measured(claim, case))
