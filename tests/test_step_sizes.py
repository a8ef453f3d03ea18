"""Effective learning rates and decay against what a step really does, and the forecast of an examination."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import wellcond as wc
from tests.problems import make, train
from wellcond.examination.step_sizes import QUANTILES, step_sizes


def sizes(optimizer, model: nn.Module, steps: int = 3):
    x = torch.randn(20, 3, dtype=torch.float64)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return step_sizes(wc.Problem(model, nn.MSELoss(), (x, torch.zeros(20, 4).double())), optimizer)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 4).double()


def test_rates_are_those_of_adams_formula():
    model = linear()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, eps=1e-6)
    found = sizes(optimizer, model).learning_rate.parameters
    assert [(d.parameter, d.kind, d.entries) for d in found] == [("weight", "weight", 12), ("bias", "bias", 4)]
    for d, p in zip(found, model.parameters(), strict=True):
        v = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**3)
        rates = (0.02 / (v.sqrt() + 1e-6)).flatten()
        expected = rates.quantile(torch.tensor(QUANTILES, dtype=torch.float64), interpolation="nearest")
        torch.testing.assert_close(torch.tensor(d.quantiles, dtype=torch.float64), expected)
        assert sum(d.counts) == d.entries


def test_rates_that_are_all_the_same_are_one_bin():
    model = linear()
    found = sizes(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert len(found.learning_rate.edges) == 2
    assert [d.counts for d in found.learning_rate.parameters] == [(12,), (4,)]
    assert found.decay.edges == ()
    assert all(d.quantiles == (0.0,) * len(QUANTILES) and d.counts == () for d in found.decay.parameters)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=1e-3, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=1e-3, weight_decay=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=1e-3, weight_decay=0.1, momentum=0.9, dampening=0.5),
        lambda p: torch.optim.SGD(p, lr=1e-3, weight_decay=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    ],
    ids=["SGD", "momentum", "dampening", "nesterov", "AdamW"],
)
def test_decay_is_what_a_parameter_loses_in_a_step_without_a_gradient(make_optimizer):
    model = linear()
    optimizer = make_optimizer(model.parameters())
    for _ in range(300):  # until momentum has settled
        before = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    problem = wc.Problem(model, nn.MSELoss(), (torch.randn(5, 3).double(), torch.zeros(5, 4).double()))
    decays = step_sizes(problem, optimizer).decay.parameters
    for d, p, old in zip(decays, model.parameters(), before, strict=True):
        lost = float((1 - p.detach() / old).median())
        # Momentum sums decays of a parameter that was a little larger: a relative difference of about decay·β/(1−β).
        assert d.median == pytest.approx(lost, rel=0.02)


def test_coupled_decay_goes_through_the_preconditioner():
    model = linear()
    found = sizes(torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=0.3), model)
    for rate, decay in zip(found.learning_rate.parameters, found.decay.parameters, strict=True):
        assert decay.quantiles == pytest.approx([0.3 * q for q in rate.quantiles])


def test_a_preconditioner_that_mixes_coordinates_gives_no_rates_and_a_note():
    case = make("tanh MLP")
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    wc.precondition(optimizer, wc.BatchNormPreconditioner(case.model))
    train(case, optimizer, 3)
    m = wc.examine(case.model, case.loss_fn, case.data, optimizer).measurements
    assert m.step_sizes is None
    assert any("mixes coordinates" in note for note in m.notes)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD])
def test_the_forecast_is_that_of_the_forecast_room(kind, groups):
    case = make("tanh MLP")
    parameters = list(case.model.parameters())
    split = [{"params": parameters[:2], "lr": 3e-2}, {"params": parameters[2:]}] if groups == 2 else parameters
    optimizer = kind(split, lr=1e-2)
    train(case, optimizer, 5)
    problem = wc.Problem(case.model, case.loss_fn, case.data)
    twin = wc.forecast(problem, {"as it is": optimizer, "no preconditioner": None}, steps=20)
    found = wc.examine(case.model, case.loss_fn, case.data, optimizer).measurements.forecast
    assert list(found.curves)[-1] == "rows scaled"
    assert ("its P alone" in found.curves) == (kind is not torch.optim.SGD)
    for name, curve in twin.curves.items():
        assert found[name].learning_rate == pytest.approx(curve.learning_rate, rel=1e-5)
        assert found[name].edge_ratio == pytest.approx(curve.edge_ratio, rel=1e-5)
        torch.testing.assert_close(found[name].losses, curve.losses, rtol=1e-5, atol=1e-8)


def test_where_nothing_is_predicted_a_note_says_why():
    model, X = nn.Linear(2, 1).double(), torch.randn(9, 2).double()
    with torch.no_grad():
        Y = model(X)
    m = wc.examine(model, nn.MSELoss(), (X, Y)).measurements
    assert m.forecast is None
    assert any("the gradient is zero" in note for note in m.notes)


def test_quick_and_without_an_optimizer():
    case = make("ReLU MLP")
    m = wc.examine(case.model, case.loss_fn, case.data).measurements
    assert list(m.forecast.curves) == ["no preconditioner", "rows scaled"]
    assert m.step_sizes is None
    assert wc.examine(case.model, case.loss_fn, case.data, quick=True).measurements.forecast is None
