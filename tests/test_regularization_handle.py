"""The handle of a penalty, which parameters it is on, and bad input."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import wellcond as wc
from tests.regularized import (
    GRAM,
    MOMENT,
    PENALTIES,
    SCALES,
    TOP,
    Transformerish,
    X,
    batches,
    network,
    refused,
    same,
    train,
    y,
)
from wellcond import penalties as R  # noqa: N812
from wellcond.steps import spaces

# -- the handle --


def test_the_strength_can_be_scheduled():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = wc.regularize(optimizer, R.L1(0.0), params="all")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = model[0].weight.detach().clone()
    for strength in (0.0, 0.1, 0.3):
        handle.strength = strength
        optimizer.step()
    expected = before.sign() * (before.abs() - 0.1 * 0.4).clamp(min=0)
    assert torch.allclose(model[0].weight, expected, atol=1e-15)
    with pytest.raises(ValueError, match="strength"):
        handle.strength = -1.0
    with pytest.raises(TypeError, match="strength"):
        handle.strength = "0.1"
    box = wc.regularize(torch.optim.SGD(model.parameters(), lr=0.1), R.Box(0, 1), space="euclidean")
    with pytest.raises(AttributeError, match="constraint"):
        _ = box.strength


def test_value_is_that_of_z_or_of_p():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    intrinsic = wc.regularize(optimizer, R.L1(0.1))
    with pytest.raises(ValueError, match="take a step first"):
        intrinsic.value()
    original = wc.regularize(optimizer, R.L2(0.1), space="original")
    assert float(original.value()) == pytest.approx(
        0.05 * sum(float(p.detach().square().sum()) for p in (model[0].weight, model[2].weight))
    )
    train(model, optimizer, 3)
    scales = wc.preconditioner_of(optimizer).scales
    expected = 0.1 * sum(
        float((p.detach() / s).abs().sum()) for p, s in zip(model.parameters(), scales, strict=True) if p.dim() > 1
    )
    assert float(intrinsic.value()) == pytest.approx(expected)


@pytest.mark.parametrize("space", spaces.SPACES)
def test_optimality_is_zero_at_the_solution_only(space):
    torch.manual_seed(0)
    model = nn.Linear(10, 1, bias=False).double()
    data = (torch.tensor(X), torch.tensor(y)[:, None])
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.9 / (TOP * 9), alpha=1.0, eps=0.0)
    optimizer.state[model.weight] = {"step": torch.tensor(1.0), "square_avg": SCALES.reshape(1, 10) ** -4}
    handle = wc.regularize(optimizer, R.L1(0.1), space=space)
    wc.regularize(optimizer, R.L2(0.3), space="original")  # counts into the loss
    problem = wc.Problem(model, lambda o, t: 0.5 * nn.functional.mse_loss(o, t), data)
    start = handle.optimality(problem)
    for _ in range(8000):
        model.weight.grad = model.weight.detach() @ GRAM - MOMENT
        optimizer.step()
    assert start > 0.05
    assert handle.optimality(problem) < 1e-8
    assert any(model.weight.detach()[0] == 0)


def test_optimality_counts_the_optimizers_own_decay():
    model = nn.Linear(10, 1, bias=False).double()
    problem = wc.Problem(
        model, lambda o, t: 0.5 * nn.functional.mse_loss(o, t), (torch.tensor(X), torch.tensor(y)[:, None])
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / (TOP + 0.3), weight_decay=0.3)
    handle = wc.regularize(optimizer, R.L1(0.1))
    for _ in range(3000):
        model.weight.grad = model.weight.detach() @ GRAM - MOMENT
        optimizer.step()
    assert handle.optimality(problem) < 1e-10
    other = torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1)
    with pytest.raises(ValueError, match="problem does not have"):
        wc.regularize(other, R.L1(0.1)).optimality(problem)


def test_the_handle_tells_everything_in_force():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    handle = wc.regularize(optimizer, R.L1(0.001), model=model)
    wc.regularize(optimizer, R.L2(0.3), space="original", params="all")
    text = repr(handle)
    for part in (
        "L1(0.001)",
        "intrinsic",
        "AdamW",
        "0.weight, 2.weight",
        "2 of 4",
        "L2(0.3) (original)",
        "weight_decay=0.02",
    ):
        assert part in text
    handle.remove()
    assert "removed" in repr(handle)


def test_sparsity_of_the_penalized_layers():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = wc.regularize(optimizer, R.L1(0.1), params=["2.weight"], model=model)
    with torch.no_grad():
        model[2].weight[1] = 0
        model[2].weight[:, 5] = 0
    (layer,) = handle.sparsity().layers
    assert (layer.name, layer.zeros, layer.zero_rows, layer.zero_columns) == ("2.weight", 15, 1, 1)
    whole = wc.sparsity(model)
    assert [x.name for x in whole.layers] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert whole.zeros == 15
    assert whole.fraction == pytest.approx(15 / 146)
    table = repr(whole).splitlines()
    assert "2.weight      3×13   15 of 39 (38.5%)   1 of 3     1 of 13" in table
    assert "all of these         15 of 130 (11.5%)" in table
    assert "2 vectors            0 of 16 (0.0%)" in table
    assert repr(handle.sparsity()).count("\n") == 1
    with pytest.raises(TypeError, match=r"give a torch\.nn\.Module"):
        wc.sparsity(optimizer)


def test_long_names_and_convolutions_keep_the_table_narrow():
    model = nn.ModuleDict({"a_module_of_a_very_long_name_" * 3: nn.Conv2d(3, 4, 5)})
    with torch.no_grad():
        next(iter(model.values())).weight[:, 1] = 0
    (line,) = [x for x in repr(wc.sparsity(model)).splitlines() if "4×3×5×5" in x]
    assert len(line) < 100
    assert ".weight  4×3×5×5  100 of 300 (33.3%)  0 of 4     1 of 3" in line


def test_which_parameters_are_penalized():
    model = Transformerish()

    def names(**options):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return wc.regularize(optimizer, R.L1(0.1), **options).names()

    assert len(names()) == 6  # without the model, every tensor of two dimensions
    assert names(model=model) == ["encoder.0.weight", "encoder.1.weight"]
    assert names(model=model, params=["encoder.*.bias", "norm.weight"]) == [
        "norm.weight",
        "encoder.0.bias",
        "encoder.1.bias",
    ]
    assert names(model=model, params="encoder.0.weight") == ["encoder.0.weight"]
    assert names(model=model, params=model.encoder.parameters()) == [
        f"encoder.{i}.{k}" for i in (0, 1) for k in ("weight", "bias")
    ]
    assert names(model=model, params=lambda p: p.dim() == 1) == ["encoder.0.bias", "encoder.1.bias"]
    assert len(names(params=all)) == len(names(params="all")) == 8
    named = torch.optim.SGD(model.named_parameters(), lr=0.1)
    assert "encoder.0.weight" in wc.regularize(named, R.L1(0.1)).names()


def test_weights_that_are_normalized_before_use_are_left_out():
    # A penalty would take their size, which the loss does not see, to zero, and the weight to 0/0.
    from torch.nn.utils import parametrizations, weight_norm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = weight_norm(nn.Linear(7, 5))
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(7, 7)),
        old,
        parametrizations.spectral_norm(nn.Linear(5, 4)),
        nn.Linear(4, 3),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    handle = wc.regularize(optimizer, R.L1(0.5), model=model)
    assert handle.names() == ["3.weight"]
    train(model, optimizer, 100, batches(torch.float32))
    assert all(p.isfinite().all() for p in model.parameters())
    assert handle.sparsity().zeros > 0


@pytest.mark.parametrize("space", spaces.SPACES)
def test_an_embedding_under_a_dense_adaptive_optimizer_is_warned_of(space):
    model = Transformerish()
    with pytest.warns(UserWarning, match=r"embedding\.weight is an embedding.*rarely used") as caught:
        wc.regularize(
            torch.optim.Adam(model.parameters()), R.L1(0.1), space=space, model=model, params="embedding.weight"
        )
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wc.regularize(
            torch.optim.SparseAdam([model.embedding.weight]), R.L1(0.1), model=model, params="embedding.weight"
        )
        wc.regularize(torch.optim.Adam(model.parameters()), R.L1(0.1), model=model)


# -- any optimizer where P is not needed --


class Lion(torch.optim.Optimizer):
    """Sign of a momentum, as others ship it."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.add_(m.mul(0.9).add(p.grad, alpha=0.1).sign(), alpha=-group["lr"])
                m.lerp_(p.grad, 0.01)


@pytest.mark.parametrize("build", [Lion, torch.optim.Rprop, torch.optim.Adafactor, torch.optim.Muon])
def test_where_p_is_not_needed_any_optimizer_goes(build):
    model = network(torch.float32)
    weights = [p for p in model.parameters() if p.dim() == 2]
    optimizer = build(weights)
    # A sign method steps by ±lr: a threshold of lr·strength beats that from a strength of 1 on.
    handle = wc.regularize(optimizer, R.L1(1.5), space="euclidean")
    wc.regularize(optimizer, R.L2(0.1), space="original")
    train(model, optimizer, 60)
    assert handle.sparsity().zeros > 0
    for options in ({"space": "intrinsic"}, {"space": "original", "via": "prox"}):
        with pytest.raises(TypeError, match=f"{build.__name__} can't be read.*space='euclidean'"):
            wc.regularize(optimizer, R.MCP(0.1), **options)


def test_bad_input_is_refused_at_the_door():
    model = network()
    for strength, error in ((-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("1e-3", TypeError)):
        with pytest.raises(error, match="strength"):
            R.L1(strength)
    refused("penalty is a float", 0.1, TypeError)
    refused("space is 'z'", space="z")
    refused("via is 'magic'", via="magic")
    refused("no gradient", R.L0(0.1), TypeError, via="gradient")
    refused("no proximal step", R.Power(0.1, q=1.5), TypeError, via="prox")
    refused("original space.*euclidean", R.NuclearNorm(0.1), space="original")
    refused("parameter 0 of group 0.*cover", R.GroupL1(0.1, groups=torch.zeros(2, 2, dtype=torch.long)))
    refused("0.bias.*dimension", R.GroupL1(0.1, dim=1), params="all", model=model, of=model)
    refused("not in the optimizer", params=[nn.Parameter(torch.ones(2, 2))])
    refused("model has no parameter '9.weight'", params=["9.weight"], model=model, of=model)
    refused("give model=", params=["0.weight"])
    refused("selected", params=lambda p: False)
    refused("params is a int", params=3, error=TypeError)
    refused("params has a int", params=[3], error=TypeError)
    refused("model is a str", model="net", error=TypeError)
    refused(
        "selected.*two or more dimensions", of=nn.Linear(2, 2, bias=False).requires_grad_(False) and nn.LayerNorm(3)
    )
    refused("complex", of=nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        wc.regularize(model, R.L1(0.1))


def test_conflicting_penalties_on_one_parameter_are_refused():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    wc.regularize(optimizer, R.L1(0.1), model=model)
    with pytest.raises(ValueError, match=r"0\.weight is under L1\(0\.1\) .*set the strength"):
        wc.regularize(optimizer, R.L1(0.2), params=["0.weight"], model=model)
    with pytest.raises(ValueError, match="don't make that of the sum"):
        wc.regularize(optimizer, R.MCP(0.2))
    with pytest.raises(ValueError, match="don't make that of the sum"):
        wc.regularize(optimizer, R.GroupL1(0.2))
    wc.regularize(optimizer, R.L2(0.1))  # by its gradient: fine
    wc.regularize(optimizer, R.NonNegative())  # a projection after soft thresholding is the prox of both
    wc.regularize(optimizer, R.MCP(0.2), params=[model[0].bias])  # other parameters
    train(model, optimizer, 5)
    assert (model[0].weight >= 0).all()


def test_a_nan_gradient():
    for penalty in PENALTIES.values():
        for space in spaces.SPACES:
            if isinstance(penalty, R.NuclearNorm) and space == "original":
                continue
            finite = []
            for regularized in (False, True):
                torch.manual_seed(0)
                p = nn.Parameter(torch.randn(4, 4))
                optimizer = torch.optim.Adam([p], lr=0.01)
                if regularized:
                    wc.regularize(optimizer, penalty, space=space, via="prox")
                p.grad = torch.ones(4, 4)
                p.grad[1, 2] = torch.nan
                optimizer.step()
                finite.append(p.detach().isfinite())
            assert torch.equal(*finite), (penalty, space)  # no NaN of our own
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    wc.regularize(optimizer, R.L1(0.1), check_finite=True, model=model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[2].weight.grad[0, 0] = torch.inf
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match=r"gradient of 2\.weight has NaN or inf"):
        optimizer.step()
    assert same(before, [p.detach() for p in model.parameters()])
