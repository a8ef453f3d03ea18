"""Changed networks against what they must be, warm-ups against plain training, and bad input."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine
from torch import nn

import wellcond as wc
from tests.problems import Recurrent, Tied
from wellcond.trials import CHANGES, Network, Training
from wellcond.variants import what_if

QUICK = {"warm_up": 3, "steps": 3}


def data(*shape, N=40, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    X = 3 * torch.randn(N, *shape, generator=generator, dtype=torch.float64) + 1
    return X, torch.randint(classes, (N,), generator=generator)


def mlp(*between, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), *between, nn.Linear(8, 3)).double()


def problem_of(model, batch, **options):
    return wc.Problem(model, nn.CrossEntropyLoss(), batch, **options)


class Functional(nn.Module):
    """Activations as functions, as a method, and by one module that is called twice; a Sigmoid at the end."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(5, 8), nn.Linear(8, 7), nn.Linear(7, 6), nn.Linear(6, 9)
        self.e, self.twice = nn.Linear(9, 3), nn.Tanh()

    def forward(self, x):
        x = nn.functional.relu(self.a(x))
        x = self.b(x).tanh()
        x = self.twice(self.d(self.twice(self.c(x))))
        return torch.sigmoid(self.e(x))


class Tokens(nn.Module):
    """A Linear layer on the last of three dimensions."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(self.act(self.a(x)).mean(1))


class Transformer(nn.Module):
    """Two of torch's encoder layers, which keep their activation as a function or a module, after one of its own."""

    def __init__(self, activation):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, activation=activation, batch_first=True)
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.b(self.encoder(nn.functional.gelu(self.a(x))).mean(1))


class Branching(nn.Module):
    """Can't be traced; its activation is called twice if `twice`."""

    def __init__(self, twice):
        super().__init__()
        self.a, self.act, self.b, self.twice = nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3), twice

    def forward(self, x):
        x = self.act(self.a(x))
        if self.twice and x.sum() > 0:
            x = self.act(self.a(x))
        elif x.sum() < -1:
            x = -x
        return self.b(x)


def convolution():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(27, 6), nn.ELU(),
        nn.Linear(6, 3), nn.Sigmoid(),
    )  # fmt: skip


SITES = {  # network, shape of an example, widths of the normalizations
    "modules": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), (5,), [8]),
    "one module in two places": (
        lambda: (lambda act: nn.Sequential(nn.Linear(5, 8), act, nn.Linear(8, 7), act, nn.Linear(7, 3)))(nn.Tanh()),
        (5,),
        [8, 7],
    ),
    "functions": (Functional, (5,), [8, 7, 6, 9]),
    "tokens": (Tokens, (4, 5), [6]),
    "transformer, function": (lambda: Transformer("relu"), (4, 5), [6, 10, 10]),
    "transformer, module": (lambda: Transformer(nn.SiLU()), (4, 5), [6, 10, 10]),
    "transformer, in a Sequential": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(24, 3)
        ),
        (4, 6),
        [10],
    ),
    "untraceable": (lambda: Branching(False), (5,), [5]),
    "convolutions": (convolution, (2, 6, 6), [4, 3, 6]),
    "sequences": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
        (2, 6),
        [4],
    ),
    "volumes": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.Softplus(), nn.Flatten(), nn.Linear(32, 3)),
        (2, 3, 3, 3),
        [4],
    ),
}


def built(name):
    torch.manual_seed(1)
    build, shape, widths = SITES[name]
    return build().double(), data(*shape), widths


@pytest.mark.parametrize("name", SITES)
def test_batch_norm_before_every_hidden_activation_starts_from_the_same_function(name):
    model, batch, widths = built(name)
    network = CHANGES["batch norm"](problem_of(model, batch))
    norms = [m for m in network.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [m.num_features for m in norms] == widths
    assert len(network.added()) == 2 * len(widths)
    torch.testing.assert_close(network.model(batch[0]), model(batch[0]), rtol=1e-10, atol=1e-10)
    # The statistics that evaluation uses are those of the data; torch keeps the unbiased variance.
    torch.testing.assert_close(network.model.eval()(batch[0]), model(batch[0]), rtol=0, atol=0.05)


@pytest.mark.parametrize("name", SITES)
def test_layer_norm_keeps_the_mean_and_spread_of_each_feature(name):
    model, batch, widths = built(name)
    before, after = [], []

    def watch(network, into):
        added = {id(p) for p in network.added()}
        for m in network.model.modules():
            if id(getattr(m, "weight", None)) in added:
                m.register_forward_hook(lambda m, args, out: into.append(out.detach()))

    # What batch norm gives at the start is what the given network computes.
    for normalized, into in ((CHANGES["batch norm"], before), (CHANGES["layer norm"], after)):
        network = normalized(problem_of(model, batch))
        watch(network, into)
        network.model(batch[0])
    assert len(before) == len(after) == len(widths)
    for x, y, width in zip(before, after, widths, strict=True):
        x, y = (t.movedim(1 if t.shape[1] == width else -1, -1).reshape(-1, width) for t in (x, y))
        torch.testing.assert_close(y.mean(0), x.mean(0), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(y.std(0), x.std(0), rtol=1e-8, atol=1e-8)


def test_several_batches_use_the_statistics_of_all_data_and_say_what_differs():
    model, (X, y) = mlp(), data(5)
    batches = [(X[:7], y[:7]), (X[7:20], y[7:20]), (X[20:], y[20:])]
    problem = problem_of(model, batches)
    norm = CHANGES["batch norm"](problem).model[1][0]
    pre = model[0](X)
    torch.testing.assert_close(norm.bias, pre.mean(0))
    torch.testing.assert_close(norm.weight, (pre.var(0, correction=0) + norm.eps).sqrt())
    found = what_if(problem, torch.optim.SGD(model.parameters(), lr=0.1), "batch norm", **QUICK)
    assert abs(found["batch norm"].start_loss - problem.loss()) > 1e-4
    assert "batch norm: starts from a loss that differs" in str(found)


@pytest.mark.parametrize("bias", [True, False])
def test_standardized_inputs_are_theorys_change_of_variables(bias):
    torch.manual_seed(0)
    X, y = data(4, seed=3)
    model = nn.Linear(4, 3, bias=bias).double()
    problem = problem_of(model, (X, y))
    network = CHANGES["standardize inputs"](problem)
    changed = network.problem(problem)
    torch.testing.assert_close(network.model(X), model(X))
    assert changed.loss() == pytest.approx(problem.loss(), rel=1e-12)
    assert bool(network.notes) is not bias
    if bias:  # z of V D, theory 5.2: [b; W] = V D ŵ', V = [[1, −μᵀ], [0, I]]
        mean, scale, n = X.mean(0), X.std(0, correction=0), 3
        P = torch.zeros(15, 15, dtype=torch.float64)
        for row in range(n):
            w = slice(4 * row, 4 * row + 4)
            P[w, w] = torch.diag(1 / scale)
            P[12 + row, w], P[12 + row, 12 + row] = -mean / scale, 1
        expected = P.T @ wc.Hessian(problem).dense() @ P
        torch.testing.assert_close(wc.Hessian(changed).dense(), expected, rtol=1e-10, atol=1e-12)


def test_standardized_inputs_of_convolutions_and_recurrent_networks():
    torch.manual_seed(0)
    X, y = data(2, 6, 6)
    for padding, same in ((0, True), (1, False)):
        width = 64 if not padding else 144
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=padding), nn.Tanh(), nn.Flatten(), nn.Linear(width, 3)
        ).double()
        network = CHANGES["standardize inputs"](problem_of(model, (X, y)))
        assert torch.allclose(network.model(X), model(X), rtol=1e-10) is same
        assert any("border" in note for note in network.notes) is not same
    X, y = data(4, 3)
    network = CHANGES["standardize inputs"](
        wc.Problem(Recurrent().double(), nn.MSELoss(), (X, torch.zeros(40, 2).double()))
    )
    assert "recurrent" in network.notes[0]


def test_data_that_are_rescaled_on_the_way_are_standardized_where_they_arrive():
    class Rescaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(5, 3)

        def forward(self, x):
            return self.out(x / 255)

    torch.manual_seed(0)
    model, (X, y) = Rescaled().double(), data(5)
    network = CHANGES["standardize inputs"](problem_of(model, (X, y)))
    torch.testing.assert_close(network.model(X), model(X))
    torch.testing.assert_close(network.model.out[0].mean, X.mean(0) / 255)


def test_nothing_of_the_given_run_changes():
    model = mlp(nn.BatchNorm1d(8), nn.Dropout(0.3))
    X, y = data(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
    model[3].eval()

    def everything():
        torch.manual_seed(5)
        state = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
        gradients = [p.grad.clone() for p in model.parameters()]
        return state, gradients, [m.training for m in model.modules()], [id(p) for p in model.parameters()]

    before = everything()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    changes = ["standardize inputs", "layer norm"]
    found = what_if(problem_of(model, (X, y)), optimizer, changes, **QUICK)
    assert list(found.variants) == ["as it is", *changes]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    after = everything()
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
    assert after[2:] == before[2:]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-2),
}


def scales_of(P, problem):
    return [torch.ones_like(p) for p in problem.parameters] if P is None else P.scales


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_warm_up_is_training_at_the_best_of_its_rates(name):
    model, (X, y) = mlp(), data(5)
    batches = [(X[:25], y[:25]), (X[25:], y[25:])]
    problem = problem_of(model, batches)
    network = Network.copy_of(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    found = Training(network, problem, optimizer).best(7)

    def trained(factor):
        twin = copy.deepcopy(model)
        stepper = OPTIMIZERS[name](twin.parameters())
        for group in stepper.param_groups:
            group["lr"] *= factor
        for k in range(7):
            stepper.zero_grad()
            x, t = batches[k % 2]
            nn.functional.cross_entropy(twin(x), t).backward()
            stepper.step()
        return problem_of(twin, batches).loss(), wc.preconditioner_of(stepper)

    loss, P = trained(found.factor)
    assert found.loss == pytest.approx(loss, rel=1e-10)
    for mine, theirs in zip(scales_of(found.P(), problem), P.scales, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=0)
    neighbours = [found.factor * step for step in (10**-0.5, 10**0.5)]
    assert all(loss <= other or math.isnan(other) for other, _ in map(trained, neighbours))
    torch.testing.assert_close(network.model.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_without_a_warm_up_p_is_that_of_the_gradient():
    model, batch = mlp(), data(5)
    problem = problem_of(model, batch)
    network = Network.copy_of(model)
    found = Training(network, problem, torch.optim.Adam(model.parameters(), weight_decay=0.1)).start()
    gradient = torch.cat([s.pow(-2).flatten() - 1e-8 for s in found.P().scales])
    torch.testing.assert_close(gradient, problem.gradient().abs(), rtol=1e-6, atol=1e-10)
    assert found.loss == problem.loss()


def test_training_trains_copies_and_the_function_that_is_measured_keeps_its_buffers():
    model, (X, y) = mlp(nn.BatchNorm1d(8)), data(5)
    for mode in ("train", "eval"):
        problem = problem_of(model, [(X[:20], y[:20]), (X[20:], y[20:])], mode=mode)
        for network in (Network.copy_of(model), CHANGES["BNP"](problem)):
            training = Training(network, problem, torch.optim.SGD(model.parameters(), lr=0.1))
            found = training.run(1.0, 3)
            torch.testing.assert_close(network.model.state_dict(), model.state_dict(), rtol=0, atol=0)
            for b, c in zip(found.problem.model.buffers(), model.buffers(), strict=True):
                assert torch.equal(b, c)
            assert found.loss == found.problem.loss() != problem.loss()


def test_groups_frozen_parameters_and_new_ones():
    model = mlp()
    model[0].weight.requires_grad_(False)
    groups = [{"params": [model[2].weight, model[2].bias], "lr": 0.1}, {"params": [model[0].bias], "lr": 0.01}]
    problem = problem_of(model, data(5))
    found = what_if(problem, torch.optim.SGD(groups, momentum=0.9), ["batch norm", "standardize inputs"], **QUICK)
    assert not found["as it is"].edge_ratio.defined
    assert sum(p.requires_grad for p in found["batch norm"].model.parameters()) == 5
    assert found["standardize inputs"].start_loss == pytest.approx(problem.loss(), rel=1e-10)


def test_what_is_returned():
    model, batch = mlp(), data(5)
    problem = problem_of(model, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = what_if(problem, optimizer, ["batch norm", "standardize inputs"], warm_up=5, steps=8)
    again = what_if(problem, optimizer, ["batch norm", "standardize inputs"], warm_up=5, steps=8)
    assert str(found) == str(again)
    losses = [found[name].predicted.value for name in found.ranking]
    assert losses == sorted(losses)
    assert found.better in (None, found.ranking[0])
    plain = found["as it is"]
    assert plain.start_loss == problem.loss()
    assert len(plain.warm_up) == 5
    assert plain.warm_up[0] == pytest.approx(plain.start_loss, rel=1e-12)
    assert plain.hessian.largest.value == pytest.approx(wc.conditioning(wc.Hessian(problem)).largest.value, rel=1e-10)
    torch.testing.assert_close(plain.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    held = plain.curve.trusted_steps
    assert plain.predicted.value == float(plain.curve.losses[held])
    assert plain.loss == pytest.approx(float(plain.curve.losses[0]), rel=1e-12)
    bound = plain.edge_ratio.scaled(0.5 / plain.edge_ratio.value)
    assert plain.suggested_learning_rate.value == pytest.approx(
        plain.learning_rate * bound.value / plain.edge_ratio.value, rel=1e-9
    )
    assert "κ_eff" in str(found)
    assert "predicted to be the better one" in str(found) or "too near" in str(found)
    assert found._repr_html_().count("<tr>") == 4
    with pytest.raises(KeyError, match="layer norm"):
        found["layer norm"]


def test_where_one_has_no_forecast_all_are_compared_by_the_loss_after_the_warm_up():
    model, batch = mlp(), data(5)
    problem = problem_of(model, batch)
    for make, forecasts in ((OPTIMIZERS["momentum"], True), (OPTIMIZERS["Adam"], False)):
        found = what_if(problem, make(model.parameters()), ["BNP", "batch norm"], warm_up=6, steps=4, figures=False)
        assert (found["BNP"].curve is not None) is forecasts
        for v in found.variants.values():
            held = v.curve.trusted_steps if forecasts else 0
            assert v.predicted.value == (v.loss if not held else float(v.curve.losses[held]))
            fell = sum(v.warm_up[3:]) / 3 - v.loss
            assert v.predicted.high - v.predicted.value >= 0.25 * fell + 0.05 * v.loss - 1e-12
            assert v.predicted.value - v.predicted.low == pytest.approx(v.predicted.high - v.predicted.value)
    first, second = (found[name].predicted for name in found.ranking[:2])
    assert (found.better is None) is (first.high >= second.low)


def test_inference_takes_the_normalization_of_a_transformer_layer_too():
    torch.manual_seed(0)
    model, batch = Transformer("relu").double().eval(), data(4, 5)
    problem = problem_of(model, batch, mode="eval")
    network = CHANGES["layer norm"](problem)
    with torch.no_grad():  # where torch's fused kernel would skip the activation
        assert network.problem(problem).loss() == pytest.approx(
            float(nn.functional.cross_entropy(network.model.eval()(batch[0]), batch[1]))
        )
        assert abs(network.problem(problem).loss() - problem.loss()) > 1e-3


def test_the_edge_ratio_is_that_of_the_stability_room():
    model, batch = mlp(), data(5)
    problem = problem_of(model, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    found = what_if(problem, optimizer, "standardize inputs", **QUICK)["as it is"]
    optimizer.param_groups[0]["lr"] = found.learning_rate
    edge = wc.edge_ratio(problem, optimizer)
    assert found.edge_ratio.value == pytest.approx(edge.ratio.value, rel=1e-3)  # its λ_max is to 1e-3
    suggested = wc.suggest_learning_rate(problem, optimizer)
    assert found.suggested_learning_rate.value == pytest.approx(suggested.learning_rate.value, rel=1e-3)


def test_the_plot_has_a_curve_for_every_variant():
    pytest.importorskip("matplotlib").use("Agg")
    model, batch = mlp(), data(5)
    found = what_if(problem_of(model, batch), torch.optim.SGD(model.parameters(), lr=0.1), "layer norm", **QUICK)
    labels = found.plot().get_legend_handles_labels()[1]
    assert labels == ["as it is", "layer norm"]


def test_a_callable_loss_and_dict_batches():
    model, (X, y) = mlp(), data(5)
    batches = [{"x": X[:20], "y": y[:20]}, {"x": X[20:], "y": y[20:]}]
    problem = wc.Problem(model, loss=lambda m, b: nn.functional.cross_entropy(m(b["x"]), b["y"]), data=batches)
    found = what_if(problem, torch.optim.SGD(model.parameters(), lr=0.1), ["batch norm", "standardize inputs"], **QUICK)
    assert found["standardize inputs"].start_loss == pytest.approx(problem.loss(), rel=1e-10)


def test_half_precision_is_measured_in_float32():
    model = mlp().to(torch.bfloat16)
    X, y = data(5)
    problem = problem_of(model, (X.to(torch.bfloat16), y))
    found = what_if(problem, torch.optim.SGD(model.parameters(), lr=0.1), "batch norm", **QUICK)
    assert found["batch norm"].start_loss == pytest.approx(problem.loss(), rel=0.02)  # γ, β to three digits


def test_batch_norm_preconditioning():
    pytest.importorskip("wellcond.preconditioners.batch_norm")
    model, (X, y) = mlp(), data(5)
    problem = problem_of(model, (X, y))
    for make in (OPTIMIZERS["SGD"], OPTIMIZERS["Adam"]):
        found = what_if(problem, make(model.parameters()), "BNP", **QUICK)["BNP"]
        assert found.start_loss == problem.loss()
    torch.testing.assert_close(found.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert all(not m._forward_pre_hooks for m in found.model.modules())
    # PᵀHP by the definition of theory 5.3, layer by layer: m ≤ N here, so that q = 1.
    P = torch.eye(problem.size, dtype=torch.float64)
    offset = 0
    for layer, h in ((model[0], X), (model[2], model[1](model[0](X)).detach())):
        out, width = layer.weight.shape
        variance = h.var(0, correction=0)
        scale = (variance + 1e-2 * variance.max() + 1e-4).sqrt()
        for row in range(out):
            w = slice(offset + row * width, offset + (row + 1) * width)
            b = offset + out * width + row
            P[w, w], P[b, w] = torch.diag(1 / scale), -h.mean(0) / scale
        offset += out * width + out
    plain = what_if(problem, OPTIMIZERS["SGD"](model.parameters()), "BNP", **QUICK)["BNP"]
    expected = torch.linalg.eigvalsh(P.T @ wc.Hessian(problem).dense() @ P)
    torch.testing.assert_close(plain.conditioning.spectrum, expected, rtol=1e-7, atol=1e-9)


def _nan_inside():
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    return model, data(5)


BAD = {
    "change": (lambda: (mlp(), data(5)), "group norm", ValueError, "there are 'standardize inputs'"),
    "no change": (lambda: (mlp(), data(5)), [], ValueError, "no change"),
    "kind of change": (lambda: (mlp(), data(5)), [3], TypeError, "got a int"),
    "no activations": (lambda: (nn.Linear(5, 3).double(), data(5)), "batch norm", ValueError, "no hidden activation"),
    "output activation only": (
        lambda: (nn.Sequential(nn.Linear(5, 3), nn.Sigmoid()).double(), data(5)),
        "layer norm",
        ValueError,
        "no hidden activation",
    ),
    "called twice, untraceable": (
        lambda: (Branching(True).double(), data(5)),
        "batch norm",
        ValueError,
        "a module of its own",
    ),
    "batch norm": (lambda: (mlp(nn.BatchNorm1d(8)), data(5)), "batch norm", ValueError, r"already \(2\)"),
    "single example": (lambda: (mlp(), data(5, N=1)), "batch norm", ValueError, "single example"),
    "single example's spread": (lambda: (mlp(), data(5, N=1)), "standardize inputs", ValueError, "single example"),
    "tokens": (
        lambda: (Tied().double(), (torch.zeros(6, 4, dtype=torch.long), torch.zeros(6, dtype=torch.long))),
        "standardize inputs",
        ValueError,
        "tokens of the embedding embedding",
    ),
    "parametrized": (
        lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)).double(), data(5)),
        "standardize inputs",
        ValueError,
        "parametrized",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name):
    make, change, kind, words = BAD[name]
    model, batch = make()
    with pytest.raises(kind, match=words):
        what_if(problem_of(model, batch), torch.optim.SGD(model.parameters(), lr=0.1), change, **QUICK)


def test_activations_that_are_not_finite_name_the_layer():
    model, batch = mlp(), data(5)
    with torch.no_grad():
        model[0].bias[2] = float("inf")
    model[2] = nn.Sequential(nn.Hardtanh(), model[2])
    problem = problem_of(model, batch)
    with pytest.raises(ValueError, match="output of layer 0, feature 2: a value is inf"):
        what_if(problem, torch.optim.SGD(model.parameters(), lr=0.1), "batch norm")


def test_what_float32_can_not_measure_says_what_to_do():
    torch.manual_seed(0)
    X, y = (torch.tensor(a) for a in load_wine(return_X_y=True))
    model = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))
    problem = wc.Problem(model, nn.CrossEntropyLoss(), (X.float(), y))
    found = what_if(problem, torch.optim.SGD(model.parameters(), lr=1e-3), "standardize inputs", warm_up=5, steps=5)
    (note,) = found["as it is"].notes
    assert note.startswith("no κ of H: the second derivative is not symmetric")
    assert "measure in float64" in note


def test_other_bad_arguments():
    model, batch = mlp(), data(5)
    problem = problem_of(model, batch)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="warm_up=-1"):
        what_if(problem, sgd, "batch norm", warm_up=-1)
    with pytest.raises(ValueError, match="not the model's"):
        what_if(problem, torch.optim.SGD(mlp().parameters(), lr=0.1), "batch norm")
    with pytest.raises(ValueError, match="lacks 2"):
        what_if(problem, torch.optim.SGD(model[0].parameters(), lr=0.1), "batch norm")
    with pytest.raises(TypeError, match=r"the optimizer is a NoneType; give a torch\.optim"):
        what_if(problem, None, "BNP")
    with pytest.raises(TypeError, match="LBFGS can't be read"):
        what_if(problem, torch.optim.LBFGS(model.parameters()), "BNP", **QUICK)
    with pytest.raises(TypeError, match="Rprop"):
        what_if(problem, torch.optim.Rprop(model.parameters()), "batch norm")
    with pytest.raises(ValueError, match="maximizes"):
        what_if(problem, torch.optim.SGD(model.parameters(), lr=0.1, maximize=True), "batch norm")
    with pytest.raises(ValueError, match="mode='train'"):
        what_if(problem_of(model, batch, mode="eval"), sgd, "batch norm")
