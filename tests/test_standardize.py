"""Statistics of the inputs against whole-data twins, and layers that they were folded into against the two in a row."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from sklearn import datasets
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from wellcond.normalization import Standardize, standardize


def features(N=101, d=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-3, 3, d, dtype=torch.float64)
    return (torch.randn(N, d, generator=generator, dtype=torch.float64) * scale + 5 * scale).to(dtype)


def batches(X, sizes):
    return [(x, torch.zeros(len(x))) for x in X.split(sizes)]


@pytest.mark.parametrize("sizes", [[101], [100, 1], [1, 60, 40], [1] * 101])
def test_moments_are_those_of_all_data_whatever_the_batches(sizes):
    X = features()
    s = standardize(batches(X, sizes))
    # Merging a hundred batches rounds a hundred times.
    torch.testing.assert_close(s.mean, X.mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(s.scale, X.std(0, correction=0), rtol=1e-13, atol=0)
    assert s.dim == -1
    assert s.constant == []


@pytest.mark.parametrize("kind", ["tensor", "pair", "list", "loader", "loader of inputs", "iterable"])
def test_every_kind_of_data(kind):
    X = features(60)
    y = torch.zeros(60)

    class Stream(IterableDataset):
        def __iter__(self):
            return zip(X, y, strict=True)

    data = {
        "tensor": X,
        "pair": (X, y),
        "list": batches(X, 16),
        "loader": DataLoader(TensorDataset(X, y), batch_size=16, shuffle=True),
        "loader of inputs": DataLoader(TensorDataset(X), batch_size=16),
        "iterable": DataLoader(Stream(), batch_size=16),
    }[kind]
    torch.testing.assert_close(standardize(data).mean, X.mean(0), rtol=1e-13, atol=0)


def test_the_loader_and_all_random_states_stay_as_they_are():
    class Noisy(TensorDataset):
        def __getitem__(self, i):
            return self.tensors[0][i] + torch.randn(7) + np.random.randn() + random.random(), 0.0

    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(Noisy(features(dtype=torch.float32)), batch_size=10, shuffle=True, generator=generator)
    states = torch.get_rng_state(), generator.get_state(), random.getstate(), np.random.get_state()[1].copy()
    first, second = standardize(loader), standardize(loader)
    assert torch.equal(first.mean, second.mean)
    assert not torch.equal(first.mean, standardize(loader, seed=1).mean)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(generator.get_state(), states[1])
    assert random.getstate() == states[2]
    assert np.array_equal(np.random.get_state()[1], states[3])


def test_more_examples_than_a_measurement_reads():
    X = torch.arange(20_000, dtype=torch.float64)[:, None]
    s = standardize(DataLoader(TensorDataset(X, X), batch_size=4096))
    assert float(s.mean) == pytest.approx(9999.5, rel=1e-13)


@pytest.mark.parametrize(
    ("shape", "dim", "expected"), [((4, 4), None, -3), ((9,), 1, -2), ((9,), -1, -1), ((2, 2, 2), 1, -4)]
)
def test_channels_of_images_and_sequences(shape, dim, expected):
    X = torch.randn(20, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    s = standardize(batches(X, 7), dim=dim)
    flat = X.movedim(expected, -1).flatten(0, -2)
    assert s.dim == expected
    torch.testing.assert_close(
        s(X), (X - s.mean.view(-1, *[1] * (-1 - expected))) / s.scale.view(-1, *[1] * (-1 - expected))
    )
    torch.testing.assert_close(s.mean, flat.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(s(X).movedim(expected, -1).flatten(0, -2).std(0, correction=0), torch.ones_like(s.mean))
    if expected != -1:
        torch.testing.assert_close(s(X[0]), s(X)[0])


def test_a_mean_far_above_the_spread_in_float32():
    X = features(500, dtype=torch.float32) * 0 + torch.randn(500, 7, generator=torch.Generator().manual_seed(1)) + 1e6
    s, exact = standardize(batches(X, 33)), X.double()
    assert s.mean.dtype == torch.float32
    expected = (exact - exact.mean(0)) / exact.std(0, correction=0)
    # x − mean is exact in float32 here; what is left is its rounding and that of the scale.
    torch.testing.assert_close(s(X).double(), expected, rtol=1e-6, atol=1e-6)


def test_integer_images():
    X = torch.randint(256, (30, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    s = standardize(batches(X, 8))
    assert s(X).dtype == torch.float32
    torch.testing.assert_close(s.mean, X.double().mean((0, 2, 3)).float())
    torch.testing.assert_close(standardize(X.long()).mean, s.mean)


def test_half_precision_stays_half():
    s = standardize(features(dtype=torch.float32))
    assert s(features(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_constant_features_are_named_and_keep_their_scale():
    X = features()
    X[:, 2], X[:, 5] = 0.1, 0.0
    s = standardize(batches(X, 10))
    assert s.constant == [2, 5]
    assert s.scale[2] == 1
    assert float(s(X)[:, [2, 5]].abs().max()) < 1e-15
    twin = Standardize(torch.zeros(7), torch.ones(7)).double()
    twin.load_state_dict(s.state_dict())
    assert twin.constant == [2, 5]
    assert torch.equal(twin(X), s(X))


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(4, 6, 3), (9,)),
    "2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2), (9, 8)),
    "3d": (lambda: nn.Conv3d(4, 6, (1, 2, 3)), (4, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (7, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), (7, 7)),
    "replicated border": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), (7, 7)),
    "circular": (lambda: nn.Conv1d(4, 6, 5, padding="same", padding_mode="circular"), (11,)),
    "border wider than the kernel": (lambda: nn.Conv2d(4, 6, (1, 2), padding=(2, 3), padding_mode="reflect"), (7, 7)),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_folded_convolutions(name, dtype, tolerance):
    torch.manual_seed(0)
    build, shape = CONVOLUTIONS[name]
    layer, X = build().to(dtype), (torch.randn(20, 4, *shape, dtype=torch.float64) * 3 + 1).to(dtype)
    _check_folded(layer, X, standardize(X, dim=1), tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_folded_linear_layers(bias, dtype, tolerance):
    torch.manual_seed(0)
    layer = nn.Linear(7, 5, bias=bias).to(dtype)
    _check_folded(layer, features(dtype=dtype), standardize(features(dtype=dtype)), tolerance)


def _check_folded(layer, X, standardization, tolerance):
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    folded = standardization.fold_into(layer)
    expected = layer(standardization(X)).detach()
    assert float((folded(X).detach() - expected).abs().max()) <= tolerance * float(expected.abs().max())
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in layer.state_dict().items())
    assert not {id(p) for p in folded.parameters()} & {id(p) for p in layer.parameters()}


def test_padding_with_zeros_is_refused_unless_the_mean_is_zero():
    s = standardize(torch.rand(5, 4, 6, 6, generator=torch.Generator().manual_seed(0)))
    for padding in (1, "same"):
        with pytest.raises(ValueError, match="pads with zeros"):
            s.fold_into(nn.Conv2d(4, 2, 3, padding=padding))
    s.fold_into(nn.Conv2d(4, 2, 1, padding="same"))
    centered = Standardize(torch.zeros(4), torch.full((4,), 2.0), dim=-3)
    torch.manual_seed(0)
    X, layer = torch.randn(5, 4, 6, 6), nn.Conv2d(4, 2, 3, padding=1)
    torch.testing.assert_close(centered.fold_into(layer)(X), layer(centered(X)))


def test_folding_what_float32_cannot_resolve_warns():
    X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 1e5
    with pytest.warns(UserWarning, match="standard deviations"):
        standardize(X).fold_into(nn.Linear(3, 2))


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes", "iris", "wine"])
def test_folded_in_float32_on_real_data_is_equal_to_a_millionth_or_warns(name):
    data = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {})).data
    X, warned = torch.tensor(data, dtype=torch.float32), 0
    for seed in range(20):
        torch.manual_seed(seed)
        layer, s = nn.Linear(X.shape[1], 32), standardize(X)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            folded = s.fold_into(layer)
        expected = layer(s(X)).detach()
        error = float((folded(X).detach() - expected).abs().max() / expected.abs().max())
        warned += bool(caught)
        assert error <= 1e-6 or caught
        assert error <= 2e-6
    # A mean is 3 standard deviations of digits, 9 of breast_cancer and diabetes, 16 of wine.
    assert warned == 0 or name in ("wine", "breast_cancer")


def test_layers_that_do_not_fit():
    s = standardize(features())
    with pytest.raises(ValueError, match="takes 8 features"):
        s.fold_into(nn.Linear(8, 2))
    with pytest.raises(ValueError, match="dimension -3"):
        s.fold_into(nn.Conv2d(7, 2, 3))
    with pytest.raises(TypeError, match="ReLU"):
        s.fold_into(nn.ReLU())
    with pytest.raises(ValueError, match="parametrized"):
        s.fold_into(nn.utils.parametrizations.weight_norm(nn.Linear(7, 2)))
    with pytest.raises(ValueError, match="7 features"):
        s(torch.zeros(3, 8))


def _with_nan():
    X = features()
    X[41, 3] = float("nan")
    return batches(X, 20)


BAD = {
    "NaN": (_with_nan, {}, ValueError, "batch 2, feature 3"),
    "infinite": (lambda: torch.tensor([[1.0], [float("inf")]]), {}, ValueError, "batch 0, feature 0: a value is inf"),
    "dict": (lambda: [({"pixels": torch.zeros(2, 2)}, torch.zeros(2))], {}, TypeError, "a dict with pixels"),
    "dict batch": (lambda: [{"x": torch.zeros(2, 2)}], {}, TypeError, "a dict with x"),
    "tokens": (lambda: (torch.zeros(4, 9, dtype=torch.long), torch.zeros(4)), {}, TypeError, "tokens"),
    "complex": (lambda: torch.zeros(4, 2, dtype=torch.complex64), {}, TypeError, "complex"),
    "single example": (lambda: torch.zeros(1, 3), {}, ValueError, "single example"),
    "widths": (lambda: [(torch.zeros(3, d), torch.zeros(3)) for d in (2, 3)], {}, ValueError, "batch 1 has shape"),
    "empty batch": (lambda: [(torch.zeros(0, 3), torch.zeros(0))], {}, ValueError, "no examples"),
    "empty": (lambda: [], {}, ValueError, "empty"),
    "missing": (lambda: None, {}, ValueError, "missing"),
    "generator": (lambda: (b for b in batches(features(), 10)), {}, ValueError, "one-shot"),
    "vector": (lambda: torch.zeros(5), {}, ValueError, "one feature is"),
    "ambiguous": (lambda: torch.zeros(5, 3, 4), {}, ValueError, "dim=1"),
    "no dimension": (lambda: torch.zeros(5, 3), {"dim": 1.0}, TypeError, "dim=1.0; give the number"),
    "no squares": (lambda: torch.full((5, 3), 1e200, dtype=torch.float64), {}, ValueError, "batch 0 reaches 1e"),
    "examples": (lambda: torch.zeros(5, 3), {"dim": 0}, ValueError, "that of the examples"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_refused_in_words(name):
    data, arguments, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        standardize(data(), **arguments)
