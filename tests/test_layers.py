"""κ of extended hidden matrices against singular value decompositions."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.problems import make
from wellcond.normalization import NoLayersError, covariance, layer_conditioning, sketch
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
    # Also where the loss is not finite either.
    negative = nn.Sequential(nn.Linear(1, 1), nn.LogSigmoid(), nn.Linear(1, 1))
    with torch.no_grad():
        negative[0].bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="layer 2 are not finite"):
        layer_conditioning(Problem(negative, nn.MSELoss(), (torch.ones(3, 1), torch.ones(3, 1))))
    problem = Problem(nn.Linear(1, 1), nn.MSELoss(), (torch.full((3, 1), torch.inf), torch.ones(3, 1)))
    with pytest.raises(
        ValueError, match="the model, which is a layer itself, are not finite; fix or drop them in the da"
    ):
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
    for figure in ("kappa", "centered", "scaled", "standardized", "row_normalized"):
        assert getattr(exact, figure).value in getattr(single, figure)
    assert exact.rank == single.rank


def test_nearly_collinear_columns_are_no_collinear_ones():
    """A Gram matrix squares what they differ by, 1e-9, into its own rounding and would call the rank 3."""
    X = inputs(width=3)
    X = torch.cat([X, X[:, :1] + 1e-9 * inputs(width=1, seed=1)], 1)
    s = torch.linalg.svdvals(torch.cat([torch.ones(60, 1, dtype=torch.float64), X], 1))
    layer = layer_of(X)
    assert layer.rank == 5
    assert layer.kappa.value == pytest.approx(float(s[0] / s[-1]), rel=1e-5)
    assert float(s[0] / s[-1]) in layer.kappa


@pytest.mark.parametrize("bias", [True, False])
def test_many_rows_in_many_batches_agree_with_all_at_once(bias):
    X = inputs(N=5000, width=8, mean=1e6)
    layer = layer_of(X, bias, batches=100)
    normalized = nn.functional.layer_norm(X, (8,))
    assert layer.row_normalized.value == pytest.approx(kappa(normalized, bias), rel=1e-8)
    assert layer.centered.value == pytest.approx(kappa(X - X.mean(0), bias), rel=1e-8)
    standardized = (X - X.mean(0)) / X.std(0, correction=0)
    assert layer.standardized.value == pytest.approx(kappa(standardized, bias), rel=1e-8)
    assert layer.largest.value == pytest.approx(float(torch.linalg.matrix_norm(X, 2) ** 2 / 5000), rel=1e-10)
    torch.testing.assert_close(layer.mean, X.mean(0))
    torch.testing.assert_close(layer.deviation, X.std(0, correction=0))


def test_rows_that_sum_to_zero_lack_a_dimension():
    X = nn.functional.layer_norm(inputs(N=500, width=6), (6,))
    assert layer_of(X, bias=True).rank == 6
    assert layer_of(X, bias=False).rank == 5
    assert layer_of(X).kappa.value == pytest.approx(kappa(X, True), rel=1e-8)
    # With a common offset they sum to a constant, which is a dimension that the mean alone has.
    assert layer_of(X + 1, bias=False).rank == 6
    one_hot = torch.eye(4, dtype=torch.float64).repeat(10, 1)
    assert layer_of(one_hot, bias=True).rank == layer_of(one_hot, bias=False).rank == 4


def wide(rank: int, N: int = 600, width: int = 500) -> torch.Tensor:
    """Falling spectrum, float64."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(N, rank, dtype=torch.float64, generator=generator)
    right = torch.randn(rank, width, dtype=torch.float64, generator=generator)
    return left * torch.logspace(0, -3, rank, dtype=torch.float64) @ right + 0.1


def test_a_sketch_bounds_what_it_does_not_see():
    X = wide(500)
    problem = Problem(nn.Linear(500, 1).double(), nn.MSELoss(), (X, torch.zeros(600, 1, dtype=torch.float64)))
    (exact,), (sketched,) = layer_conditioning(problem), layer_conditioning(problem, widest=499)
    for figure in ("kappa", "centered", "scaled", "standardized", "row_normalized"):
        true, bound = getattr(exact, figure), getattr(sketched, figure)
        assert bound.unresolved
        assert not true.unresolved
        assert 1 < bound.low <= true.value
        assert "random directions" in bound.how
    assert exact.kappa.value > sketched.kappa.low > 30
    assert exact.largest.value in sketched.largest
    assert sketched.largest.high < 1.1 * sketched.largest.low
    assert 256 < sketched.rank <= exact.rank == 501
    assert sketched.mean_share == pytest.approx(exact.mean_share, rel=0.01)
    torch.testing.assert_close(sketched.mean, exact.mean)
    torch.testing.assert_close(sketched.deviation, exact.deviation)


@pytest.mark.parametrize("N", [320, 340, 600])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_bounds_of_a_sketch_hold_where_the_mean_may_lie_in_what_it_misses(N, bias, mean):
    """All singular values are alike: there is little room under the bounds."""
    X = torch.randn(N, 320, dtype=torch.float64, generator=torch.Generator().manual_seed(N)) + mean
    problem = Problem(nn.Linear(320, 1, bias=bias).double(), nn.MSELoss(), (X, torch.zeros(N, 1).double()))
    (exact,), (sketched,) = layer_conditioning(problem), layer_conditioning(problem, widest=280)
    for figure in ("kappa", "centered", "scaled", "standardized", "row_normalized"):
        assert getattr(sketched, figure).low <= getattr(exact, figure).value
    assert 256 < sketched.rank <= exact.rank


@pytest.mark.parametrize("rank", [5, 100])
def test_a_sketch_that_sees_everything_is_exact(rank):
    X = wide(rank)
    problem = Problem(nn.Linear(500, 1).double(), nn.MSELoss(), (X, torch.zeros(600, 1, dtype=torch.float64)))
    (exact,), (sketched,) = layer_conditioning(problem), layer_conditioning(problem, widest=499)
    assert sketched.rank == exact.rank == rank + 1
    for figure in ("kappa", "centered", "standardized"):
        true, found = getattr(exact, figure), getattr(sketched, figure)
        assert found.value == pytest.approx(true.value, rel=1e-4)
        assert true.value in found


def test_a_sketch_does_not_call_exact_what_is_too_small_for_it_to_see():
    """Rounded to float32 the rows have full rank, with singular values 1e-7 of the largest."""
    X = wide(100).float().double()
    problem = Problem(nn.Linear(500, 1).double(), nn.MSELoss(), (X, torch.zeros(600, 1, dtype=torch.float64)))
    (exact,), (sketched,) = layer_conditioning(problem), layer_conditioning(problem, widest=499)
    assert (sketched.rank, exact.rank) == (101, 501)
    for figure in ("kappa", "centered", "scaled", "standardized", "row_normalized"):
        assert getattr(exact, figure).value in getattr(sketched, figure)
        assert getattr(exact, figure).value > 100 * getattr(sketched, figure).low


def test_a_sketch_of_fewer_rows_than_directions():
    X = inputs(N=40, width=300)
    problem = Problem(nn.Linear(300, 1).double(), nn.MSELoss(), (X, torch.zeros(40, 1, dtype=torch.float64)))
    (exact,), (sketched,) = layer_conditioning(problem), layer_conditioning(problem, widest=299)
    assert sketched.rank == exact.rank == 40
    assert sketched.kappa.value == pytest.approx(exact.kappa.value, rel=1e-5)


def test_a_single_example_and_inputs_that_are_all_zero():
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    layer = layer_of(x, batches=1)
    assert (layer.rows, layer.rank, layer.constant, layer.kappa.value) == (1, 1, 3, 1.0)
    assert layer.mean_share == pytest.approx(1)
    zero = layer_of(torch.zeros(5, 3, dtype=torch.float64))
    assert (zero.rank, zero.constant, zero.kappa.value, zero.standardized.value) == (1, 3, 1.0, 1.0)
    assert zero.mean_share == 0


def test_integer_inputs_are_numbers():
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 1)
            self.inner.register_forward_pre_hook(lambda m, args: (args[0].long(),))
            self.inner.forward = lambda x: nn.functional.linear(x.double(), self.inner.weight, self.inner.bias)

        def forward(self, x):
            return self.inner(x)

    X = (10 * inputs(width=3)).long()
    (layer,) = layer_conditioning(Problem(Cast().double(), nn.MSELoss(), (X.double(), torch.zeros(60, 1).double())))
    assert layer.kappa.value == pytest.approx(kappa(X.double(), True), rel=1e-8)


def test_bad_input_is_named():
    problem = Problem(nn.Embedding(4, 1), nn.MSELoss(), (torch.tensor([0, 1]), torch.zeros(2, 1)))
    with pytest.raises(NoLayersError, match=r"Embedding has none of the layers .* nn\.MultiheadAttention"):
        layer_conditioning(problem)
    with pytest.raises(TypeError, match=r"got a Linear; give a wc\.Problem"):
        layer_conditioning(nn.Linear(2, 1))
    problem = Problem(nn.Linear(2, 1), nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1)))
    with pytest.raises(ValueError, match="widest=0"):
        layer_conditioning(problem, widest=0)
    with pytest.raises(ValueError, match="not initialized"):
        Problem(nn.Sequential(nn.LazyLinear(3)), nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1)))

    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(2, 2, dtype=torch.complex64).requires_grad_(False)
            self.readout = nn.Linear(2, 1)

        def forward(self, x):
            return self.readout(self.frozen(x.to(torch.complex64)).real)

    problem = Problem(Complex(), nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1)))
    with pytest.raises(ValueError, match="layer frozen sees complex inputs"):
        layer_conditioning(problem)


def test_more_columns_than_memory_allows_are_seen_along_fewer_directions(monkeypatch):
    """Ten rows and ten directions of 3,000 columns fit."""
    monkeypatch.setattr(covariance, "NUMBERS", 2**15)
    monkeypatch.setattr(sketch, "NUMBERS", 2**15)
    X = inputs(N=60, width=3000)
    layer = layer_of(X)
    assert layer.kappa.how == "bound: 10 random directions"
    s = torch.linalg.svdvals(torch.cat([torch.ones(60, 1, dtype=torch.float64), X], 1))
    assert 1 <= layer.kappa.low <= float(s[0] / s[-1])
    assert layer.kappa.unresolved
    assert float(torch.linalg.matrix_norm(X, 2) ** 2 / 60) in layer.largest
    torch.testing.assert_close(layer.deviation, X.std(0, correction=0))


@pytest.mark.skipif(sys.platform != "linux", reason="takes a limit on memory")
def test_inputs_that_memory_does_not_suffice_for_name_the_layer():
    code = """
import resource, torch
from torch import nn
import wellcond as wc

torch.set_num_threads(1)
x = torch.zeros(40, 1_000_000)
problem = wc.Problem(nn.Sequential(nn.Linear(1_000_000, 1)), nn.MSELoss(), (x, torch.zeros(40, 1)))
problem.loss()
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28,) * 2)
try:
    wc.layer_conditioning(problem)
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert re.match(r"memory does not suffice for layer '0': for its inputs of shape \(40, 1000000\); give", run.stdout)


def test_initialized_lazy_layers_are_layers():
    model = nn.Sequential(nn.LazyConv1d(2, 2), nn.Flatten(), nn.LazyLinear(1)).double()
    x = torch.randn(9, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model(x)
    layers = layer_conditioning(Problem(model, nn.MSELoss(), (x, torch.zeros(9, 1, dtype=torch.float64))))
    assert [(layer.name, layer.columns) for layer in layers] == [("0", 7), ("2", 7)]


def test_a_measurement_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Flatten(), nn.Dropout(), nn.Linear(12, 1))
    problem = Problem(model, nn.MSELoss(), (torch.randn(9, 3, 4), torch.zeros(9, 1)))
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    layer_conditioning(problem)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_one_pass_over_the_data():
    calls = []
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    data = [(torch.randn(8, 3), torch.zeros(8, 1))] * 3
    problem = Problem(model, nn.MSELoss(), data)
    problem.loss()  # what is learnt once about sizes
    model[0].register_forward_hook(lambda *_: calls.append(1))
    layer_conditioning(problem)
    assert len(calls) == 3


def test_a_layer_norm_in_float32_far_from_zero_is_known_less_well():
    """Its rows lose the digits that their mean takes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(1000.0)
    data = (inputs(), torch.zeros(60, 2, dtype=torch.float64))
    exact = layer_conditioning(Problem(model, nn.MSELoss(), data))[1].row_normalized
    single = layer_conditioning(Problem(model.float(), nn.MSELoss(), tuple(t.float() for t in data)))[1].row_normalized
    assert exact.value in single
    assert single.high - single.low > 1e4 * (exact.high - exact.low)
