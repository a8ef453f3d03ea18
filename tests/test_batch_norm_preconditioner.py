"""Batch normalization as a preconditioner: its statistics, its algebra against a dense P, and when it looks away."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import wellcond as wc
from wellcond.parameters import flatten, unflatten

MOMENTUM, EPS_1, EPS_2 = 0.7, 1e-2, 1e-4
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """Convolutions of one, grouped and depthwise channels, tokens, a tied weight, and a norm that is left alone."""

    def __init__(self, d=2, bias=True):
        super().__init__()
        conv = CONVOLUTIONS[d]
        self.first = conv(2, 4, 3, padding=1, bias=bias)
        self.grouped = conv(4, 6, 2, stride=2, groups=2, bias=bias)
        self.depthwise = conv(6, 6, 2, groups=6, padding="same", bias=bias)
        self.norm = nn.GroupNorm(2, 6)
        self.tokens = nn.Linear(6, 5, bias=bias)
        self.tied = nn.Linear(6, 5, bias=bias)
        self.tied.weight = self.tokens.weight
        self.last = nn.Linear(5, 3, bias=bias)

    def forward(self, x):
        h = self.norm(self.depthwise(self.grouped(self.first(x)).tanh()))
        h = h.flatten(2).transpose(1, 2)
        return self.last((self.tokens(h) + self.tied(h * 2 + 1)).tanh()).mean(1)


def inputs(d=2, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shift = torch.tensor([3.0, -1.0], dtype=torch.float64).view(1, 2, *[1] * d)
    return torch.randn(n, 2, *[5] * d, generator=generator, dtype=torch.float64) * (1 + shift.abs()) + shift


def net(d=2, bias=True):
    torch.manual_seed(3)
    return Net(d, bias).double()


def built(model, **options):
    return wc.BatchNormPreconditioner(model, **{"momentum": MOMENTUM, "eps_relative": EPS_1, "eps": EPS_2} | options)


def factors(P, name, N, m, centered=True):
    """(μ, σ̃, q) by the formulas of theory 5.3; of what is not centered, with the mean square for the variance (5.2)."""
    kept = P.state_dict()["layers"][name]
    variance = kept["variance"] if centered else kept["variance"] + kept["mean"].square()
    return kept["mean"], (variance + EPS_1 * variance.max() + EPS_2).sqrt(), max(m / N, 1.0) ** 0.5


def dense(P, how):
    """The matrix of one of P's maps on flat vectors."""
    n = sum(p.numel() for p in P.parameters)
    identity = torch.eye(n, dtype=torch.float64)
    return torch.stack([flatten(getattr(P, how)(unflatten(e, P.parameters))) for e in identity], 1)


def explicit(P, layers):
    """The dense P of theory 5.2, row by row of each layer: the identity elsewhere."""
    offset, where = 0, {}
    for p in P.parameters:
        where[id(p)] = torch.arange(offset, offset + p.numel()).view(p.shape)
        offset += p.numel()
    matrix = torch.eye(offset, dtype=torch.float64)
    for name, modules, N in layers:
        weight, groups = modules[0].weight, getattr(modules[0], "groups", 1)
        places = where[id(weight)].flatten(1)
        m, channels = places.shape[1], weight.shape[1]
        mean, deviation, q = factors(P, name, N, m, modules[0].bias is not None)
        for i in range(len(places)):
            group = i // (len(places) // groups)
            mine = [group * channels + j // (m // channels) for j in range(m)]
            of_row = torch.cat([where[id(x.bias)][i : i + 1] for x in modules if x.bias is not None] + [places[i]])
            biases = len(of_row) - m
            V, D = torch.eye(len(of_row), dtype=torch.float64), torch.ones(len(of_row), dtype=torch.float64)
            V[:biases, biases:] = -mean[mine]
            D[biases:] = 1 / deviation[mine]
            matrix[of_row[:, None], of_row] = V @ torch.diag(D) / q
    return matrix


def layers_of(model, d, n):
    """Rows that each weight sees in one forward pass: the first at 5 positions a side, the others at 2."""
    patches = n * 2**d
    return [
        ("first", [model.first], n * 5**d),
        ("grouped", [model.grouped], patches),
        ("depthwise", [model.depthwise], patches),
        ("tokens", [model.tokens, model.tied], 2 * patches),
        ("last", [model.last], patches),
    ]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("d", "n"), [(1, 1), (1, 3), (2, 1), (2, 4), (3, 1)])
def test_it_is_the_dense_matrix_of_the_theory(d, n, bias):
    model = net(d, bias)
    P = built(model)
    for seed in range(3):
        P.stepped()
        model(inputs(d, n, seed))
    expected = explicit(P, layers_of(model, d, n))
    assert torch.allclose(dense(P, "apply"), expected, rtol=1e-12, atol=1e-14)
    assert torch.allclose(dense(P, "adjoint"), expected.T, rtol=1e-12, atol=1e-14)
    assert torch.allclose(dense(P, "gram"), expected @ expected.T, rtol=1e-12, atol=1e-14)
    assert torch.allclose(dense(P, "invert") @ expected, torch.eye(len(expected)).double(), atol=1e-12)
    assert not torch.allclose(expected, torch.eye(len(expected)).double())


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_the_gradient_is_that_of_the_formula(rows):
    torch.manual_seed(0)
    model = nn.Linear(9, 4).double()
    P = built(model)
    mean, variance = torch.zeros(9).double(), torch.ones(9).double()
    for _ in range(5):
        h = torch.randn(rows, 9).double() * 3 + 2
        model.zero_grad()
        model(h).square().mean().backward()
        P.stepped()
        squares = (h - mean).square().mean(0)
        mean, variance = MOMENTUM * mean + (1 - MOMENTUM) * h.mean(0), MOMENTUM * variance + (1 - MOMENTUM) * squares
        tilde, q2 = variance + EPS_1 * variance.max() + EPS_2, max(9 / rows, 1.0)
        expected = (model.weight.grad - torch.outer(model.bias.grad, mean)) / (q2 * tilde)
        weight, bias = P.gram([model.weight.grad, model.bias.grad])
        assert torch.allclose(weight, expected, rtol=1e-12)
        assert torch.allclose(bias, model.bias.grad / q2 - expected @ mean, rtol=1e-12)
    assert torch.allclose(P.state_dict()["layers"][""]["variance"], variance, rtol=1e-12)


def test_frozen_parts_are_constants():
    model = net()
    model.first.bias.requires_grad_(False)
    model.last.weight.requires_grad_(False)
    P = built(model)
    model(inputs(n=1))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    g = dict(zip(names, P.gram([torch.ones_like(p) for p in P.parameters]), strict=True))
    mean, deviation, q = factors(P, "first", 25, 18, centered=False)
    assert q == 1
    assert torch.allclose(g["first.weight"], (1 / deviation.square()).view(1, 2, 1, 1).expand(4, 2, 3, 3))
    assert mean.abs().min() > 0.1
    _, _, q = factors(P, "last", 4, 5)
    assert torch.allclose(g["last.bias"], torch.ones(3).double() / q**2)


def test_over_some_of_the_parameters_is_the_block_with_the_others_constant():
    model = net()
    P = built(model)
    model(inputs())
    some = [model.last.bias, model.tokens.weight, model.norm.weight]
    part = P.over(some, ["a", "b", "c"])
    only = copy.deepcopy(model)
    Q = wc.BatchNormPreconditioner(only)
    with pytest.raises(ValueError, match="does not cover a;"):
        Q.over(some, ["a", "b", "c"])
    bias, weight, norm = part.gram([torch.ones_like(p) for p in some])
    _, deviation, q = factors(P, "tokens", 32, 6, centered=False)
    assert torch.allclose(weight, (1 / deviation.square()).expand(5, 6) / q**2)
    assert torch.equal(norm, torch.ones(6).double())
    assert torch.allclose(bias, torch.ones(3).double())
    model(inputs(seed=9))  # and it goes on following
    assert not torch.allclose(weight, part.gram([torch.ones_like(p) for p in some])[1])


def test_without_a_bias_a_large_mean_does_not_make_it_steep():
    # A mean of 10 deviations in d features: λ_max is near 200·d by the deviation, near 2·d by the root mean square.
    torch.manual_seed(0)
    model, d = nn.Linear(6, 1, bias=False).double(), 6
    X = torch.randn(200, d).double() + 10
    P = built(model, momentum=0.0)
    for _ in range(2):  # the second time about the mean of the first
        model(X)
    P.remove()
    H = wc.Hessian(wc.Problem(model, nn.MSELoss(), (X, X[:, :1])))
    assert float(torch.linalg.eigvalsh(H.preconditioned(P).dense())[-1]) == pytest.approx(2 * d, rel=0.02)


def statistics(P):
    return copy.deepcopy(P.state_dict()["layers"])


def equal(a, b):
    return all(
        torch.equal(a[n]["mean"], b[n]["mean"]) and torch.equal(a[n]["variance"], b[n]["variance"]) for n in a
    ) and [x["rows"] for x in a.values()] == [x["rows"] for x in b.values()]


def test_statistics_are_left_alone_outside_of_training():
    model = net()
    P = built(model)
    model(inputs())
    before = statistics(P)
    model.eval()
    model(inputs(seed=1))
    model.train()
    with torch.no_grad():
        model(inputs(seed=1))
    with torch.inference_mode():
        model(inputs(seed=1))
    torch.func.functional_call(model, {n: p.detach().clone() for n, p in model.named_parameters()}, inputs(seed=1))
    assert equal(before, statistics(P))
    P.stepped()
    assert equal(before, statistics(P))
    model(inputs(seed=1))
    assert not equal(before, statistics(P))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_measuring_leaves_no_trace_in_the_statistics(mode):
    model = net()
    P = built(model)
    model(inputs())
    before = statistics(P)
    problem = wc.Problem(model, nn.CrossEntropyLoss(), (inputs(seed=1), torch.tensor([0, 1, 2, 0])), mode=mode)
    problem.loss()
    problem.gradient()
    H = wc.Hessian(problem)
    with problem:
        H @ torch.ones(problem.size, dtype=torch.float64)
    Hz = H.preconditioned(P)
    v = torch.randn(problem.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = dense(P, "apply")
    assert torch.allclose(Hz @ v, p.T @ (H @ (p @ v)), rtol=1e-9, atol=1e-12)
    wc.layer_conditioning(problem)
    assert equal(before, statistics(P))


def test_rows_are_those_since_the_last_step():
    torch.manual_seed(0)
    model = nn.Linear(100, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    P = built(model)
    wc.precondition(optimizer, P)
    for part in (3, 4, 5):  # gradients accumulated of three parts
        model(torch.randn(part, 100).double()).sum().backward()
    assert P.state_dict()["layers"][""]["rows"] == 12
    optimizer.step()
    model(torch.randn(2, 100).double()).sum().backward()
    assert P.state_dict()["layers"][""]["rows"] == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_counts_once(reentrant):
    torch.manual_seed(0)
    h = torch.randn(8, 5).double().requires_grad_()
    models = [nn.Sequential(nn.Linear(5, 5), nn.Tanh()).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    P, Q = map(built, models)
    for _ in range(3):
        models[0](h).sum().backward()
        checkpoint(models[1], h, use_reentrant=reentrant).sum().backward()
    assert equal(statistics(P), statistics(Q))


def test_what_is_not_finite_does_not_poison_the_statistics():
    model = nn.Linear(3, 2)
    P = built(model)
    model(torch.tensor([[1.0, float("nan"), float("inf")], [3.0, 0.0, 0.0]]))
    kept = P.state_dict()["layers"][""]
    assert torch.allclose(kept["mean"], torch.tensor([0.6, 0.0, 0.0]))
    assert torch.allclose(kept["variance"], torch.tensor([0.7 + 0.3 * 5, 1.0, 1.0]))


def test_lead_dimensions_keywords_and_inputs_without_a_batch():
    torch.manual_seed(0)
    h = torch.randn(2, 3, 4)
    models = [nn.Linear(4, 2) for _ in range(3)]
    P = [built(m) for m in models]
    models[0](h)
    models[1](input=h)
    models[2](h.reshape(6, 4))
    assert equal(statistics(P[0]), statistics(P[1]))
    assert equal(statistics(P[0]), statistics(P[2]))
    conv = nn.Conv2d(3, 2, 2)
    alone, batched = built(conv), built(conv)
    conv(torch.randn(3, 5, 5))
    assert alone.state_dict()["layers"][""]["rows"] == batched.state_dict()["layers"][""]["rows"] == 16
    one = nn.Linear(4, 2)
    Q = built(one)
    one(h[0, 0])
    one(h[:0])
    assert Q.state_dict()["layers"][""]["rows"] == 1


def test_a_layer_that_is_not_called_is_left_as_it_is():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    P = built(attention)
    x = torch.randn(2, 3, 4)
    attention(x, x, x)[0].sum().backward()
    gradients = [p.grad for p in attention.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(gradients, P.gram(gradients), strict=True))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "a copy of a pickle": lambda x: copy.deepcopy(pickle.loads(pickle.dumps(x))),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_follow_their_own_model(how):
    model = net()
    P = built(model)
    model(inputs())
    before = statistics(P)
    other, Q = COPIES[how]((model, P))
    assert equal(before, statistics(Q))
    other(inputs(seed=1))
    assert equal(before, statistics(P))
    assert not equal(before, statistics(Q))
    model(inputs(seed=1))
    assert equal(statistics(P), statistics(Q))
    assert not Q.constant
    Q.remove()
    assert Q.constant
    assert not P.constant
    after = statistics(Q)
    other(inputs(seed=2))
    assert equal(after, statistics(Q))
    x = [torch.ones_like(p) for p in P.parameters]
    assert all(torch.equal(a, b) for a, b in zip(P.gram(x), Q.gram(x), strict=True))


def test_the_state_round_trips_with_weights_only():
    model = net()
    P = built(model)
    model(inputs())
    buffer = io.BytesIO()
    torch.save(P.state_dict(), buffer)
    buffer.seek(0)
    Q = built(net())
    Q.load_state_dict(torch.load(buffer, weights_only=True))
    assert equal(statistics(P), statistics(Q))
    x = [torch.ones_like(p) for p in P.parameters]
    assert all(torch.equal(a, b) for a, b in zip(P.gram(x), Q.gram(x), strict=True))


def test_it_follows_the_model_to_another_dtype():
    model = net().float()
    P = built(model)
    model(inputs().float())
    model.double()
    model(inputs(seed=1))
    assert all(x["mean"].dtype == torch.float64 for x in P.state_dict()["layers"].values())
    assert all(x.dtype == torch.float64 for x in P.gram([torch.ones_like(p) for p in P.parameters]))
    half = nn.Linear(4, 2).bfloat16()
    Q = built(half)
    half(torch.ones(2, 4).bfloat16())
    assert Q.state_dict()["layers"][""]["mean"].dtype == torch.float32


def refused(match, make, error=ValueError):
    with pytest.raises(error, match=match):
        make()


def test_bad_input_is_refused_at_the_door():
    refused("model is a list", lambda: built([]), TypeError)
    refused("no Linear, Conv1d", lambda: built(nn.Sequential(nn.LayerNorm(3))))
    refused("no Linear, Conv1d", lambda: built(nn.Linear(2, 2).requires_grad_(False)))
    refused("weight is not initialized", lambda: built(nn.LazyLinear(2)))
    refused("momentum=1", lambda: built(nn.Linear(2, 2), momentum=1))
    refused("momentum=nan", lambda: built(nn.Linear(2, 2), momentum=float("nan")))
    refused("eps_relative=-1", lambda: built(nn.Linear(2, 2), eps_relative=-1))
    refused("eps=0", lambda: built(nn.Linear(2, 2), eps=0))
    refused("one process and one replica", lambda: built(nn.DataParallel(nn.Linear(2, 2))))
    shared = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    shared[1].bias = shared[0].bias
    refused("0.bias is the bias of layers with different weights", lambda: built(shared))
    P = built(nn.Linear(2, 2))
    refused("the state has no layers", lambda: P.load_state_dict({}))
    refused("the state has 'first'", lambda: P.load_state_dict(built(net()).state_dict()))
    refused("has shape", lambda: P.load_state_dict(built(nn.Linear(3, 2)).state_dict()))
    refused("the state has no layers", lambda: P.load_state_dict({"layers": 3}))
    refused("give what state_dict", lambda: P.load_state_dict({"layers": {"": {"mean": torch.zeros(2)}}}))
    for key, bad in (("mean", torch.nan), ("variance", -1.0)):
        state = P.state_dict()
        state["layers"][""][key][1] = bad
        refused(f"the {key} of layer '' in the state is not finite", lambda state=state: P.load_state_dict(state))
    refused("momentum is a str", lambda: built(nn.Linear(2, 2), momentum="0.9"), TypeError)
    refused("got 1 tensors for the 2", lambda: P.apply([torch.ones(2, 2)]))
