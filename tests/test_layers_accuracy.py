"""Figures of layers whose inputs lie far from zero, are nearly collinear or many, against 130 digits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.extended_precision import NORMALIZED, condition_number
from tests.problems import rows_of
from wellcond.normalization import LayerConditioning, covariance, layer_conditioning
from wellcond.problem import Problem


def far(N: int, width: int, seed: int, mean: float = 1e6) -> Tensor:
    """Columns of spreads 1 to 10 and this mean."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, 1, width, dtype=torch.float64)
    return torch.randn(N, width, dtype=torch.float64, generator=generator) * spread + mean


def layer_of(module: nn.Module, x: Tensor, batch: int = 400) -> LayerConditioning:
    network = nn.Sequential(module, nn.Flatten()).double()
    data = [(part, torch.zeros_like(network(part))) for part in x.split(batch)]
    (layer,) = layer_conditioning(Problem(network, nn.MSELoss(), data))
    return layer


def check(layer: LayerConditioning, H: Tensor, bias: bool, figures: list[str], width: float = 1e-7) -> None:
    for name in figures:
        found, true = getattr(layer, name), condition_number(H, bias, name)
        assert found.value == pytest.approx(true, rel=1e-8)
        assert true in found
        assert found.high - found.low < width * found.low


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("N", [9, 60, 1500])
@pytest.mark.parametrize("seed", range(4))
def test_a_mean_a_million_times_the_spread(N, bias, seed):
    """κ is up to 1e13 there. Up to 1,024 rows are kept, of more the R factor."""
    width = 2 + seed
    X = far(N, width, seed)
    layer = layer_of(nn.Linear(width, 1, bias=bias), X)
    assert layer.kappa.how == "exact: R factor in float64"
    # Two features layer-normalize to ±(1, −1): nothing is left.
    check(layer, X, bias, [name for name in NORMALIZED if width > 2 or name != "row_normalized"])
    assert layer.rank == width + bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("N", [40, 1500])
@pytest.mark.parametrize("defect", ["constant", "double", "units", "own means"])
def test_so_far_from_zero_with_columns_that_are_constant_or_doubled_or_in_other_units(N, defect, bias):
    X = far(N, 5, seed=3)
    if defect == "constant":
        X[:, 1] = 4.0
    if defect == "double":
        X[:, 3] = 2 * X[:, 0]
    if defect == "units":
        X *= torch.logspace(-4, 4, 5, dtype=torch.float64)
    if defect == "own means":
        X += 1e6 * torch.linspace(-2, 2, 5, dtype=torch.float64) ** 3
    layer = layer_of(nn.Linear(5, 1, bias=bias), X)
    # Of a missing dimension the interval is that of a perturbation of any kind, beside the largest singular value.
    check(
        layer, X, bias, [name for name in NORMALIZED if name != "row_normalized"], 0.1 if defect == "double" else 1e-7
    )
    # In other units layer-normalized rows differ by less than their rounding in one dimension, which counts as none.
    true = condition_number(X, bias, "row_normalized")
    assert layer.row_normalized.low <= true
    assert defect == "units" or true in layer.row_normalized
    assert layer.rank == 5 + bias - (defect == "double") - (defect == "constant" and bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize(("small", "large"), [(-10, 0), (-20, 0), (-28, 3), (-38, 0), (0, 38), (-20, 20)])
def test_a_feature_in_units_of_its_own(small, large, mean, bias):
    """κ of up to 1e41 is known to rounding: what counts is that of the scaled columns."""
    X = far(60, 5, seed=4, mean=mean)
    X[:, 1] *= 10.0**small
    X[:, 2] *= 10.0**large
    check(layer_of(nn.Linear(5, 1, bias=bias), X), X, bias, ["kappa", "centered", "scaled", "standardized"])


def test_eigenvalues_between_the_largest_and_the_smallest():
    X = far(60, 4, seed=5, mean=0.0) * torch.logspace(0, -18, 4, dtype=torch.float64)
    spectrum = layer_of(nn.Linear(4, 1, bias=False), X).spectra["as it is"]
    # Of columns a millionfold apart: the diagonal of R, to a relative 1e-12.
    R = torch.linalg.qr(X).R.diagonal().square() / 60
    torch.testing.assert_close(spectrum, R, rtol=1e-9, atol=0)


def test_numbers_without_squares():
    X = far(60, 3, seed=6, mean=1.0)
    alone = layer_of(nn.Linear(3, 1), X)
    saturated = layer_of(nn.Linear(4, 1), torch.cat([X, 1e-160 * X[:, :1]], 1))
    assert (saturated.constant, saturated.rank, saturated.kappa.value) == (1, 4, pytest.approx(alone.kappa.value))
    network = nn.Sequential(nn.Linear(3, 1), nn.Tanh()).double()
    problem = Problem(network, nn.MSELoss(), (1e155 * X, torch.zeros(60, 1, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"the inputs of layer 0 reach \de\+15\d, .*; divide the data"):
        layer_conditioning(problem)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "arguments", "shape"),
    [(nn.Conv1d, {}, (2, 7)), (nn.Conv1d, {"stride": 2, "dilation": 2}, (2, 11)), (nn.Conv2d, {}, (1, 4, 5))],
)
def test_convolutions_far_from_zero(kind, arguments, shape, bias):
    x = far(60, math.prod(shape), seed=1).view(60, *shape)
    module = kind(shape[0], 2, 2, bias=bias, **arguments).double()
    (H,) = torch.cat(list(rows_of(module, x)), 1)
    check(layer_of(module, x), H, bias, [name for name in NORMALIZED if name != "row_normalized"])


@pytest.mark.parametrize("bias", [True, False])
def test_attention_far_from_zero(bias):
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, bias=bias, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    x = far(200, 6, seed=2).view(50, 4, 6)
    layers = layer_conditioning(Problem(Attends().double(), nn.MSELoss(), (x, torch.zeros_like(x))))
    assert layers[0].name == "attention.in_proj"
    check(layers[0], x.flatten(0, 1), bias, list(NORMALIZED))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-9])
def test_columns_that_a_gram_matrix_does_not_tell_apart(gap, bias):
    X = far(1500, 4, seed=0, mean=3.0)
    X[:, 3] = X[:, 0] + gap * X[:, 3]
    layer = layer_of(nn.Linear(4, 1, bias=bias), X)
    assert layer.rank == 4 + bias
    for name in NORMALIZED:
        found, true = getattr(layer, name), condition_number(X, bias, name)
        assert true in found
        assert found.value == pytest.approx(true, rel=max(1e-8, 1e-14 / gap))
        assert found.high < 1.001 * found.low


@pytest.mark.parametrize("seed", range(20))
def test_intervals_of_many_rows_hold(seed, monkeypatch):
    """Sorted, shifted, in small batches: what is summed up first is far from the rest."""
    monkeypatch.setattr(covariance, "BLOCK", 40)
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(300, 6, dtype=torch.float64, generator=generator)
    X = (
        X
        @ torch.diag(torch.logspace(0, -(seed % 4), 6, dtype=torch.float64))
        @ torch.randn(6, 6, generator=generator).double()
    )
    X = X[X[:, 0].argsort()] + 10 ** (seed % 5)
    layer = layer_of(nn.Linear(6, 1), X, batch=7)
    check(layer, X, True, list(NORMALIZED), 1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [3000, 20_000])
def test_rows_that_are_fewer_than_the_widest_are_exact_whatever_their_width(width, bias):
    X = far(50, width, seed=0, mean=2.0)
    layer = layer_of(nn.Linear(width, 1, bias=bias), X, batch=20)
    H = torch.cat([torch.ones(50, 1, dtype=torch.float64), X], 1) if bias else X
    s = torch.linalg.svdvals(H)
    assert layer.rank == 50
    assert layer.kappa.value == pytest.approx(float(s[0] / s[-1]), rel=1e-8)
    s = torch.linalg.svdvals((X - X.mean(0)) / X.std(0, correction=0))[:49]
    top, bottom = max(float(s[0]), math.sqrt(50) * bias), float(s[-1])
    bottom = min(bottom, math.sqrt(50)) if bias else bottom
    assert layer.standardized.value == pytest.approx(top / bottom, rel=1e-8)
    s = torch.linalg.svdvals(nn.functional.layer_norm(X, (width,)))
    if not bias:
        assert layer.row_normalized.value == pytest.approx(float(s[0] / s[-1]), rel=1e-8)
