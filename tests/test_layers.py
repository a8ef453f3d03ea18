"""κ of extended hidden matrices against singular value decompositions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.problems import make
from wellcond.normalization import layer_conditioning
from wellcond.problem import Problem


def inputs(N: int = 60, width: int = 5, mean: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, 1, width, dtype=torch.float64)
    return torch.randn(N, width, dtype=torch.float64, generator=generator) * scales + mean


def layer_of(X: torch.Tensor, bias: bool = True, batches: int = 3):
    model = nn.Linear(X.shape[1], 2, bias=bias).double()
    data = [(x, torch.zeros(len(x), 2, dtype=torch.float64)) for x in X.chunk(batches)]
    (layer,) = layer_conditioning(Problem(model, nn.MSELoss(), data))
    return layer


def kappa(X: torch.Tensor, bias: bool) -> float:
    extended = torch.cat([torch.ones(len(X), 1, dtype=torch.float64), X], 1) if bias else X
    s = torch.linalg.svdvals(extended)
    return float(s[0] / s[s > 1e-9 * s[0]][-1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mean", [0.0, 3.0, 100.0])
def test_kappa_is_that_of_the_singular_values(bias, mean):
    X = inputs(mean=mean)
    layer = layer_of(X, bias)
    assert layer.kappa.value == pytest.approx(kappa(X, bias), rel=1e-8)
    assert kappa(X, bias) * (1 - 1e-12) <= layer.kappa.high
    assert kappa(X, bias) * (1 + 1e-12) >= layer.kappa.low
    assert layer.centered.value == pytest.approx(kappa(X - X.mean(0), bias), rel=1e-8)
    rms = X.square().mean(0).sqrt()
    assert layer.scaled.value == pytest.approx(kappa(X / rms, bias), rel=1e-8)
    standardized = (X - X.mean(0)) / X.std(0, correction=0)
    assert layer.standardized.value == pytest.approx(kappa(standardized, bias), rel=1e-8)
    assert (layer.rows, layer.columns, layer.rank) == (60, 5 + bias, 5 + bias)
    assert layer.is_input


def test_a_mean_a_million_times_the_spread_does_not_cancel():
    X = inputs(mean=1e6)
    layer = layer_of(X)
    standardized = (X - X.mean(0)) / X.std(0, correction=0)
    assert layer.standardized.value == pytest.approx(kappa(standardized, True), rel=1e-8)
    assert layer.centered.value == pytest.approx(kappa(X - X.mean(0), True), rel=1e-8)
    assert layer.mean_share > 0.99


def test_what_a_gram_matrix_can_not_resolve_is_at_least():
    X = inputs(mean=1e8)
    true = torch.linalg.svdvals(torch.cat([torch.ones(60, 1, dtype=torch.float64), X], 1))
    layer = layer_of(X)
    assert math.isinf(layer.kappa.high) or float(true[0] / true[-1]) in layer.kappa
    assert layer.kappa.low <= float(true[0] / true[-1])


def test_columns_that_never_vary_and_collinear_ones():
    X = inputs()
    X[:, 1] = 4.0
    X[:, 3] = 2 * X[:, 0]
    layer = layer_of(X)
    assert layer.constant == 1
    assert layer.rank == 4  # the constant is collinear with the bias, the double with its original
    assert layer.kappa.value == pytest.approx(kappa(X, True), rel=1e-8)
    wide = layer_of(inputs(N=4, width=7), batches=1)
    assert wide.rank == 4
    zero = layer_of(torch.zeros(5, 3, dtype=torch.float64), bias=False)
    assert not zero.kappa.defined
    assert zero.rank == 0


def test_every_linear_layer_in_order_with_all_its_calls():
    case = make("LSTM")
    (layer,) = layer_conditioning(Problem(case.model, case.loss_fn, case.data))
    assert (layer.name, layer.is_input) == ("out", False)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out, self.unused = (
                nn.Linear(3, 3),
                nn.Linear(in_features=3, out_features=1),
                nn.Linear(9, 9),
            )

        def forward(self, x):
            for _ in range(4):
                x = torch.tanh(self.cell(x))
            return self.out(input=x)

    torch.manual_seed(0)
    problem = Problem(Shared(), nn.MSELoss(), (torch.randn(10, 3), torch.randn(10, 1)))
    cell, out, unused = layer_conditioning(problem)
    assert (cell.name, cell.rows, out.name, out.rows) == ("cell", 40, "out", 10)
    assert (unused.name, unused.rows, unused.kappa.defined) == ("unused", 0, False)
    tokens = make("attention")
    qkv, _ = layer_conditioning(Problem(tokens.model, tokens.loss_fn, tokens.data))
    assert qkv.rows == 24 * 3  # a row a token


def test_inputs_standardized_inside_the_model_are_not_the_data():
    class Standardized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(5, 2)

        def forward(self, x):
            return self.inner((x - x.mean(0)) / x.std(0))

    problem = Problem(Standardized().double(), nn.MSELoss(), (inputs(), torch.zeros(60, 2, dtype=torch.float64)))
    (layer,) = layer_conditioning(problem)
    assert not layer.is_input
    flattened = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    (layer,) = layer_conditioning(Problem(flattened, nn.MSELoss(), (torch.randn(8, 2, 3), torch.zeros(8, 2))))
    assert layer.is_input


def test_inputs_that_are_not_finite_name_the_layer():
    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Linear(1, 1)

        def forward(self, x):
            return torch.nan_to_num(self.second(x * torch.inf), 0.0, 0.0, 0.0)

    problem = Problem(Overflow(), nn.MSELoss(), (torch.ones(3, 1), torch.ones(3, 1)))
    with pytest.raises(ValueError, match="layer second are not finite"):
        layer_conditioning(problem)


def test_a_column_of_times_does_not_hide_its_conditioning():
    """A Gram matrix would lose everything beside the mean of the first column and call the rest perfect."""
    X = inputs(width=3)
    X[:, 0] = 1.7e9 + 1e7 * torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    s = torch.linalg.svdvals(torch.cat([torch.ones(60, 1, dtype=torch.float64), X], 1))
    layer = layer_of(X)
    assert float(s[0] / s[-1]) > 1e9
    assert layer.rank == 4
    assert layer.kappa.value == pytest.approx(float(s[0] / s[-1]), rel=1e-4)
    assert layer.kappa.low <= float(s[0] / s[-1]) <= layer.kappa.high


def test_activations_in_float32_widen_the_interval():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    data = (inputs(mean=3.0), torch.zeros(60, 2, dtype=torch.float64))
    exact = layer_conditioning(Problem(model, nn.MSELoss(), data))[1]
    single = layer_conditioning(Problem(model.float(), nn.MSELoss(), tuple(t.float() for t in data)))[1]
    for figure in ("kappa", "centered", "scaled", "standardized"):
        assert getattr(exact, figure).value in getattr(single, figure)
    assert exact.rank == single.rank
