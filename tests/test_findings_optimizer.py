"""Findings about the optimizer and its step: found where planted, with figures got another way; quiet where healthy."""

from __future__ import annotations

import copy
import math
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc
from tests.runs import copied, followed
from wellcond.examination.finding import Finding
from wellcond.examination.findings import (
    epsilon,
    gradient_noise,
    l1_in_loss,
    learning_rate,
    momentum,
    precision,
    preconditioner,
    update_ratio,
    weight_decay,
)
from wellcond.examination.kinks import l1_strengths
from wellcond.examination.measurements import measure
from wellcond.examination.noise import noise_scale
from wellcond.examination.remedies import built_code, set_code
from wellcond.examination.subject import Settings, Subject

GOOD, NOTICE, SEVERE = wc.results.Severity.GOOD, wc.results.Severity.NOTICE, wc.results.Severity.SEVERE
ADAPTIVE = {
    "Adam": partial(torch.optim.Adam, lr=3e-3),
    "AdamW": partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.0),
    "NAdam": partial(torch.optim.NAdam, lr=3e-3),
    "RAdam": partial(torch.optim.RAdam, lr=3e-3),
    "Adamax": partial(torch.optim.Adamax, lr=3e-3),
    "RMSprop": partial(torch.optim.RMSprop, lr=1e-3),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.05),
    "Adadelta": partial(torch.optim.Adadelta, lr=1.0),
}


def network(width: int = 8, act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 3))


def trained(optimizer, *, batch_size=20, steps=30, model=None, loss=None, noise=0.3) -> wc.TrainingRun:
    """A classification of 120 examples."""
    model = model or network()
    torch.manual_seed(1)
    X = torch.randn(120, 5)
    y = (X[:, :3] + noise * torch.randn(120, 3)).argmax(1)
    data = DataLoader(TensorDataset(X, y), batch_size) if batch_size < 120 else (X, y)
    run = wc.TrainingRun(model, None if loss else nn.CrossEntropyLoss(), data, optimizer(model.parameters()), loss)
    train(run, steps)
    return run


def quadratic(optimizer, curvatures, *, steps=0) -> wc.TrainingRun:
    """½Σ λ_i p_i², full batch, p_i = 1/√λ_i at first: every direction has the same share of the loss."""
    lam = torch.tensor(curvatures, dtype=torch.float64)
    X = torch.diag(lam.sqrt()) * math.sqrt(len(lam))
    model = nn.Linear(len(lam), 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(lam.rsqrt()[None])
    loss_fn = HalfSquare()
    run = wc.TrainingRun(model, loss_fn, (X, torch.zeros(len(lam), 1).double()), optimizer(model.parameters()))
    train(run, steps)
    return run


class HalfSquare(nn.Module):
    def forward(self, output, target):
        return (output - target).square().mean() / 2


def batches_of(run):
    return [run.data] if isinstance(run.data, tuple) else list(run.data)


def train(run, steps, batches_a_step=1):
    """Plain training; the loss over all data afterwards, where every batch is of one size."""
    batches = batches_of(run)
    value = lambda b: run.loss(run.model, b) if run.loss else run.loss_fn(run.model(b[0]), b[1])  # noqa: E731
    for k in range(steps):
        run.optimizer.zero_grad()
        for j in range(batches_a_step):
            (value(batches[(k * batches_a_step + j) % len(batches)]) / batches_a_step).backward()
        run.optimizer.step()
    with torch.no_grad():
        return sum(float(value(b)) for b in batches) / len(batches)


def find(module: ModuleType, run: wc.TrainingRun, **settings) -> Finding | None:
    """What one finding says of a run; the run is bit for bit what it was."""
    before = copy.deepcopy(states(run))
    settings = Settings(**settings)
    subject = Subject.of(run, settings)
    found = module.find(measure(subject, settings), subject)
    assert str(states(run)) == str(before)
    return found


def states(run):
    gradients = [p.grad for p in run.model.parameters()]
    return run.model.state_dict(), run.optimizer.state_dict(), gradients, torch.random.get_rng_state().tolist()


def quiet(found: Finding | None) -> bool:
    return found is None or found.severity is GOOD


HEALTHY = {
    **{name: partial(trained, optimizer) for name, optimizer in ADAPTIVE.items()},
    "SGD with momentum": partial(trained, partial(torch.optim.SGD, lr=0.05, momentum=0.9)),
    "one batch": partial(trained, ADAPTIVE["Adam"], batch_size=120),
    "ReLU": lambda: trained(ADAPTIVE["Adam"], model=network(act=nn.ReLU)),
    "long": partial(trained, ADAPTIVE["Adam"], steps=300),
    "weight decay beside the gradient": partial(trained, partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_are_quiet(name):
    run = HEALTHY[name]()
    settings = Settings()
    subject = Subject.of(run, settings)
    m = measure(subject, settings)
    for module in (
        momentum,
        epsilon,
        weight_decay,
        l1_in_loss,
        gradient_noise,
        update_ratio,
        precision,
        preconditioner,
    ):
        assert quiet(module.find(m, subject)), module.__name__
    assert learning_rate.find(m, subject).severity is not SEVERE
    assert not subject.failures.causes()


# -- learning rate


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=1e-4), partial(torch.optim.Adam, lr=1e-6)])
def test_a_rate_far_below_its_bound_is_noticed_with_what_a_larger_one_does(optimizer):
    run = trained(optimizer, batch_size=120)
    found = find(learning_rate, run)
    assert found.severity is NOTICE
    other = followed(found.remedy, run)
    factor = other.optimizer.param_groups[0]["lr"] / run.optimizer.param_groups[0]["lr"]
    assert round(factor) in (10, 100, 1000)
    assert factor * found.evidence["edge_ratio"].high <= 0.5
    assert found.effect.without.value == pytest.approx(train(copied(run), 50), rel=1e-5)
    assert found.effect.with_remedy.value == pytest.approx(train(other, 50), rel=1e-5)


def test_a_rate_above_its_bound_is_severe_unless_a_smaller_one_ends_higher():
    """On a quadratic the loss grows above the bound; where the loss falls off the steep direction it does not."""
    found = find(learning_rate, quadratic(partial(torch.optim.SGD, lr=2.5), [1.0, 0.5, 0.1]))
    assert found.severity is SEVERE
    assert found.evidence["edge_ratio"].value == pytest.approx(1.25)
    assert found.effect.better
    slow = quadratic(partial(torch.optim.SGD, lr=2.5), [1.0, 1e-4, 1e-4])
    with torch.no_grad():
        slow.model.weight[0, 0] = 0.0  # nothing is left to win on the steep direction
    found = find(learning_rate, slow)
    assert found.severity is NOTICE
    assert found.effect.better is False
    assert not found.remedy


def test_near_the_bound_a_trial_says_whether_to_lower_the_rate():
    found = find(learning_rate, quadratic(partial(torch.optim.SGD, lr=1.9), [1.0, 0.9, 0.8]))
    assert found.severity is NOTICE
    assert found.evidence["edge_ratio"].value == pytest.approx(0.95)
    assert found.effect.better
    assert 'group["lr"] = 1' in found.remedy


# -- momentum


def test_missing_momentum_is_noticed_where_the_conditioning_asks_for_it():
    run = quadratic(partial(torch.optim.SGD, lr=1.0), torch.logspace(0, -3, 12).tolist())
    found = find(momentum, run)
    assert found.severity is NOTICE
    kappa = found.evidence["kappa_effective"].value
    assert found.evidence["suggested_momentum"].value == pytest.approx(
        ((math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)) ** 2
    )
    other = followed(found.remedy, run)
    assert other.optimizer.param_groups[0]["momentum"] == pytest.approx(
        found.evidence["suggested_momentum"].value, abs=0.006
    )
    assert found.effect.without.value == pytest.approx(train(copied(run), 50), rel=1e-5)
    assert found.effect.with_remedy.value == pytest.approx(train(other, 50), rel=0.1)  # the code is rounded


def test_where_a_larger_rate_does_as_well_momentum_is_not_advised():
    run = quadratic(partial(torch.optim.SGD, lr=1e-3), [1.0, 0.01, 0.01, 0.009])
    assert find(momentum, run) is None or find(momentum, run).severity is GOOD


def test_momentum_takes_no_credit_for_a_rate_that_was_too_large():
    found = find(momentum, quadratic(partial(torch.optim.SGD, lr=6.0), [1.0, 1e-5, 1e-5, 9e-6]))
    assert found.severity is GOOD
    assert "a smaller rate wins too" in found.title


def test_well_conditioned_runs_need_no_momentum():
    assert find(momentum, quadratic(partial(torch.optim.SGD, lr=1.0), [1.0, 0.5, 0.1])) is None


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, lr=0.05, momentum=0.995),
        partial(torch.optim.SGD, lr=0.05, momentum=0.995, nesterov=False, dampening=0.5),
        partial(torch.optim.Adam, lr=0.05, betas=(0.995, 0.999)),
        partial(torch.optim.RMSprop, lr=0.002, momentum=0.995),
    ],
)
def test_momentum_that_oscillates_is_noticed(optimizer):
    run = quadratic(optimizer, [1.0, 0.8, 0.5], steps=12)
    found = find(momentum, run)
    assert found.severity is NOTICE
    assert found.evidence["momentum"].value == 0.995
    assert found.effect.with_remedy.value == pytest.approx(train(followed(found.remedy, run), 50), rel=0.3)


# -- epsilon


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if name != "Adagrad"])
def test_an_epsilon_that_swallows_is_found(name):
    run = trained(partial(ADAPTIVE[name], eps=3.0), steps=10)
    found = find(epsilon, run)
    state = [run.optimizer.state[p] for p in run.model.parameters()]
    eps = 3.0
    root = {
        "RMSprop": lambda s: s["square_avg"].sqrt(),
        "Adadelta": lambda s: s["square_avg"].sqrt(),
        "Adamax": lambda s: s["exp_inf"] - eps,
    }.get(name, lambda s: (s["exp_avg_sq"] / (1 - 0.999 ** float(s["step"]))).sqrt())
    roots = torch.cat([root(s).flatten() for s in state])
    threshold = eps**0.5 if name == "Adadelta" else eps
    assert found.evidence["swallowed"].value == float((roots[roots > 0] < threshold).double().mean())
    assert not found.effect or found.effect.better
    if name in ("Adam", "AdamW", "NAdam", "RMSprop"):
        assert found.severity is SEVERE
        assert followed(found.remedy, run).optimizer.param_groups[0]["eps"] == 1e-8
        assert "now 3" in found.remedy


def test_coordinates_without_a_gradient_are_not_swallowed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(1000, 3), nn.Flatten(), nn.Linear(6, 2))
    tokens = torch.randint(5, (40, 2))  # 995 rows are never used
    data = DataLoader(TensorDataset(tokens, (tokens[:, 0] > 2).long()), 10)
    run = wc.TrainingRun(model, nn.CrossEntropyLoss(), data, torch.optim.Adam(model.parameters(), lr=1e-2))
    train(run, 8)
    found = find(epsilon, run, quick=True)
    assert found.evidence["swallowed"].value == 0
    assert "29 coordinates" in found.evidence["swallowed"].how


# -- weight decay


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if name != "AdamW"])
def test_the_spread_of_weight_decay_through_the_preconditioner(name):
    model = network()
    with torch.no_grad():
        model[0].weight[:, 0] = 0  # an input that is tiny: small gradients there
    run = trained(partial(ADAPTIVE[name], weight_decay=0.03), model=model, batch_size=120)
    found = find(weight_decay, run)
    group = run.optimizer.param_groups[0]
    P = wc.preconditioner_of(run.optimizer)
    alpha = group["lr"] / (1 - 0.9**30) if name in ("Adam", "RAdam", "Adamax") else group["lr"]
    rates = torch.cat([(alpha * 0.03 * s.square()).flatten() for s in P.scales]).sort().values
    for key, q in (("decay_5", 0.05), ("decay_95", 0.95)):
        assert found.evidence[key].value == pytest.approx(float(rates[int(q * (len(rates) - 1))]), rel=1e-9)
    assert found.evidence["decoupled"].value == pytest.approx(0.03 * group["lr"])
    spread = found.evidence["decay_95"].value / found.evidence["decay_5"].value
    assert found.severity is (NOTICE if spread >= 10 else GOOD)
    if name in ("Adam", "RMSprop", "NAdam", "RAdam"):
        assert found.severity is NOTICE
        assert found.effect.without.value == pytest.approx(spread)
    if found.severity is NOTICE and name not in ("Adadelta",):
        # The trial goes on with the state; from new state code and trial agree.
        other = followed(found.remedy, run)
        decay = {float(g["weight_decay"]) for g in other.optimizer.param_groups}
        assert decay == ({0.03} if name in ("Adam", "NAdam", "RAdam") else {0.0})
        assert found.evidence["loss_decoupled"].value == pytest.approx(train(decoupled(run), 50), rel=1e-5)


def decoupled(run: wc.TrainingRun) -> wc.TrainingRun:
    """By hand: p loses lr·τ of itself before each step."""
    run = copied(run)
    (group,) = run.optimizer.param_groups
    tau, group["weight_decay"] = group["weight_decay"], 0

    def decay(optimizer, *_):
        with torch.no_grad():
            for p in group["params"]:
                p.mul_(1 - group["lr"] * tau)

    run.optimizer.register_step_pre_hook(decay)
    return run


def test_weight_decay_without_a_preconditioner_or_beside_the_gradient_is_none_of_its_business():
    for optimizer in (
        partial(torch.optim.SGD, lr=0.1, weight_decay=0.1),
        partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
        partial(torch.optim.NAdam, lr=1e-3, weight_decay=0.1, decoupled_weight_decay=True),
    ):
        assert find(weight_decay, trained(optimizer), quick=True) is None


# -- L1 in the loss


def with_l1(strength, which):
    def loss(model, batch):
        penalized = [p for name, p in model.named_parameters() if which(name)]
        fit = nn.functional.cross_entropy(model(batch[0]), batch[1])
        return fit + strength * sum(p.abs().sum() for p in penalized)

    return loss


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("only", ["", "2.weight"])
def test_l1_in_the_loss_is_found_with_its_strength(act, only):
    run = trained(ADAPTIVE["Adam"], model=network(act=act), loss=with_l1(1e-2, lambda name: only in name))
    found = find(l1_in_loss, run)
    assert found.severity is NOTICE
    strengths = {k.removeprefix("strength of "): e for k, e in found.evidence.items() if k.startswith("strength")}
    assert set(strengths) == {name for name, _ in run.model.named_parameters() if only in name}
    for e in strengths.values():
        assert e.value == pytest.approx(1e-2, rel=1e-3)
    assert found.evidence["exact_zeros"].value == 0
    assert found.effect.without.value == 1
    assert found.effect.with_remedy.value < 1
    other = followed(found.remedy, run)
    other.loss, other.loss_fn = None, nn.CrossEntropyLoss()
    train(other, 50)
    held = [p for name, p in other.model.named_parameters() if only in name]
    share = sum(int((p != 0).sum()) for p in held) / sum(p.numel() for p in held)
    assert share == pytest.approx(found.effect.with_remedy.value, abs=0.1)  # another order of the batches


def test_what_is_smooth_or_kinked_elsewhere_is_no_l1():
    def l2(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) + 0.1 * sum(
            p.square().sum() for p in model.parameters()
        )

    def absolute_error(model, batch):
        return (model(batch[0])[:, 0] - batch[1]).abs().mean()

    for loss in (l2, absolute_error):
        run = trained(ADAPTIVE["Adam"], model=network(act=nn.ReLU), loss=loss)
        assert l1_strengths(wc.Problem(run.model, None, run.data, loss=loss, dtype=torch.float64)) == {}
        assert find(l1_in_loss, run, quick=True) is None


def test_l1_is_found_in_float32_too_and_not_looked_for_without_a_preconditioner():
    loss = with_l1(1e-2, lambda _: True)
    run = trained(ADAPTIVE["Adam"], loss=loss)
    strengths = l1_strengths(wc.Problem(run.model, None, run.data, loss=loss))
    assert strengths["2.weight"].value == pytest.approx(1e-2, rel=0.01)
    assert find(l1_in_loss, trained(partial(torch.optim.SGD, lr=0.1), loss=loss), quick=True) is None


# -- gradient noise


@pytest.mark.parametrize("sizes", [[5] * 40, [3, 5, 7, 9] * 10])
def test_the_noise_scale_is_that_of_the_examples_gradients(sizes):
    """A linear model with squared loss, whose examples' gradients are written down; over 20 draws at 99.7 %."""
    missed, middle = 0, []
    for seed in range(20):
        torch.manual_seed(seed)
        w, x = torch.full((4,), 0.3, dtype=torch.float64), torch.randn(sum(sizes), 4, dtype=torch.float64)
        y = torch.randn(sum(sizes), dtype=torch.float64)
        model = nn.Linear(4, 1, bias=False).double()
        with torch.no_grad():
            model.weight.copy_(w[None])
        batches = list(zip(x.split(sizes), y[:, None].split(sizes), strict=True))
        scale = noise_scale(wc.Problem(model, nn.MSELoss(), batches))
        # g = 2(w·x − y)x with x, y standard normal: G = 2w, E‖g‖² = 4(Σ_ij E x_i² x_j² w_j² + E y² x²) = 4(6·‖w‖² + 4)
        size = float(w.square().sum())
        exact = (4 * (6 * size + 4) - 4 * size) / (4 * size)
        missed += exact not in scale.examples
        middle.append(scale.examples.value)
        assert scale.batch == pytest.approx(len(sizes) / sum(1 / s for s in sizes))
        assert scale.ratio.value == pytest.approx(scale.examples.value / scale.batch)
    assert missed <= 1
    assert sorted(middle)[10] == pytest.approx(exact, rel=0.2)


def noisy_regression(examples: int, batch_size: int, steps: int) -> wc.TrainingRun:
    torch.manual_seed(0)
    x = torch.randn(examples, 6)
    y = x.sum(1, keepdim=True) + 3 * torch.randn(examples, 1)
    model = nn.Linear(6, 1)
    loader = DataLoader(TensorDataset(x, y), batch_size)
    run = wc.TrainingRun(model, nn.MSELoss(), loader, torch.optim.SGD(model.parameters(), lr=0.12))
    train(run, steps)
    return run


def test_noise_that_keeps_the_loss_up_is_noticed():
    run = noisy_regression(examples=200, batch_size=2, steps=100)
    found = find(gradient_noise, run)
    assert found.severity is NOTICE
    assert found.effect.better
    assert followed(found.remedy, run).data.batch_size == 8
    assert "now 2" in found.remedy
    # The signal is that of the last steps, in another order.
    assert found.effect.with_remedy.value == pytest.approx(train(copied(run), 50, batches_a_step=4), rel=0.3)


def test_what_only_diverges_more_slowly_is_not_the_noise():
    """Of a run whose rate is several times its bound."""
    run = trained(partial(torch.optim.Adam, lr=3e-3), batch_size=8, steps=60, noise=2.0)
    run.optimizer.param_groups[0]["lr"] = 2.0
    found = find(gradient_noise, run)
    subject = Subject.of(run, Settings())
    tried = subject.trials.effect(lambda run: run, batches_a_step=4)
    assert tried.saves(0.2)
    assert tried.with_remedy.value > subject.problem.loss()
    assert found.severity is GOOD
    assert "rises" in found.text


def test_noise_over_a_signal_that_may_be_zero_is_no_figure_to_show():
    """Its lower end is something like 0.00856, which says nothing."""
    run = noisy_regression(examples=32, batch_size=8, steps=20)
    found = find(gradient_noise, run)
    assert found.severity is GOOD
    assert found.evidence["noise_over_signal"].unresolved
    assert "It is not known whether" in found.title
    assert "at least" not in found.title + found.text


def test_few_batches_say_nothing_about_noise():
    assert find(gradient_noise, trained(ADAPTIVE["Adam"], batch_size=40), quick=True) is None


# -- update ratio


def groups_with(rate, kind=torch.optim.Adam, lr=1e-3):
    def optimizer(parameters):
        p = list(parameters)
        return kind([{"params": p[:2]}, {"params": p[2:4], "lr": rate}, {"params": p[4:]}], lr=lr)

    return optimizer


def test_a_layer_that_moves_at_another_pace_is_found():
    run = trained(groups_with(3e-6, torch.optim.SGD, 0.1), batch_size=120)
    found = find(update_ratio, run)
    assert found.severity is NOTICE
    other = copied(run)
    before = {name: p.detach().clone() for name, p in other.model.named_parameters()}
    train(other, 1)
    after = {name: p.detach() for name, p in other.model.named_parameters()}
    by_hand = {name: float((after[name] - p).norm() / p.norm()) for name, p in before.items()}
    assert found.evidence["update ratio of 2.weight"].value == pytest.approx(by_hand["2.weight"], rel=1e-2)
    assert found.evidence["others"].value == pytest.approx((by_hand["0.weight"] + by_hand["4.weight"]) / 2, rel=1e-5)
    assert found.effect.better
    other = followed(found.remedy, run)
    assert len(other.optimizer.param_groups) == 4
    assert train(other, 50) == pytest.approx(found.effect.with_remedy.value, rel=0.05)  # the code is rounded
    assert "now 3e-06" in found.remedy


def test_a_layer_that_moves_fast_and_well_is_noticed_without_advice():
    run = trained(groups_with(1e-3))
    run.optimizer.param_groups[1]["lr"] = 0.1
    found = find(update_ratio, run)
    assert found.severity is NOTICE
    assert found.effect.better is False
    assert not found.remedy
    assert "saves little, or costs" in found.text


def test_what_started_from_zero_does_not_stand_out():
    model = network()
    nn.init.zeros_(model[4].weight)
    assert find(update_ratio, trained(ADAPTIVE["Adam"], model=model, steps=2), quick=True) is None


# -- precision


def half_run(lr: float) -> wc.TrainingRun:
    run = trained(partial(torch.optim.SGD, lr=0.05), steps=60)
    run.model.bfloat16()
    X, y = run.data.dataset.tensors
    run.data = DataLoader(TensorDataset(X.bfloat16(), y), 20)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=lr)
    return run


def test_steps_that_are_rounded_away_are_severe():
    run = half_run(3e-3)
    found = find(precision, run)
    assert found.severity is SEVERE
    batch = next(iter(run.data))
    other = copied(run)
    other.loss_fn(other.model(batch[0]), batch[1]).backward()
    before = [p.detach().clone() for p in other.model.parameters()]
    other.optimizer.step()
    pulled = sum(int((p.grad != 0).sum()) for p in other.model.parameters())
    lost = sum(int(((p == b) & (p.grad != 0)).sum()) for p, b in zip(other.model.parameters(), before, strict=True))
    assert lost / pulled in found.evidence["lost"]
    assert found.effect.better
    assert "torch.bfloat16" in found.remedy


def test_steps_that_are_large_enough_are_not_lost():
    assert find(precision, half_run(1.0)).severity is GOOD
    assert find(precision, trained(ADAPTIVE["Adam"])) is None


def test_a_gradient_that_is_rounding_is_noticed():
    torch.manual_seed(0)
    X = torch.randn(100, 4)
    y = X @ torch.ones(4, 1) + 1e4
    model = nn.Linear(4, 1)
    with torch.no_grad():
        extended = torch.cat([X, torch.ones(100, 1)], 1).double()
        solution = torch.linalg.lstsq(extended, y.double()).solution.float()
        model.weight.copy_(solution[:4].T)
        model.bias.copy_(solution[4])
    run = wc.TrainingRun(model, nn.MSELoss(), (X, y), torch.optim.SGD(model.parameters(), lr=0.01))
    found = find(precision, run, dtype=torch.float32)
    assert found.severity is NOTICE
    problems = [wc.Problem(model, nn.MSELoss(), (X, y), dtype=d) for d in (torch.float32, torch.float64)]
    g32, g64 = (p.gradient().double() for p in problems)
    assert found.evidence["gradient_rounding"].value == pytest.approx(float((g32 - g64).norm() / g64.norm()))
    assert find(precision, run) is None  # measured in float64


# -- preconditioner


def test_a_preconditioner_that_hurts_is_tried_against_sgd():
    """A second moment from another time: P takes a well-conditioned problem apart."""
    run = quadratic(partial(torch.optim.RMSprop, lr=1e-4), [1.0, 0.9, 0.8, 0.7])
    train(run, 1)
    state = run.optimizer.state[run.model.weight]
    state["square_avg"].copy_(torch.tensor([[1.0, 1e2, 1e4, 1e6]]))
    found = find(preconditioner, run)
    assert found.severity is NOTICE
    other = followed(found.remedy, run)
    assert isinstance(other.optimizer, torch.optim.SGD)
    assert found.effect.with_remedy.value == pytest.approx(train(other, 50), rel=0.1, abs=1e-6)


# -- remedies as code


def test_code_has_the_users_settings():
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    one = torch.optim.Adam([p], lr=0.01, betas=(0.8, 0.999), weight_decay=0.1)
    assert built_code(one, torch.optim.AdamW) == (
        "optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.999), weight_decay=0.1)"
    )
    two = torch.optim.Adam([{"params": [p]}, {"params": [q], "lr": 1e-4}], lr=0.01, weight_decay=0.1)
    names = {"torch": torch, "optimizer": two}
    exec(built_code(two, torch.optim.AdamW), names)
    assert [g["lr"] for g in names["optimizer"].param_groups] == [0.01, 1e-4]
    assert [g["weight_decay"] for g in names["optimizer"].param_groups] == [0.1, 0.1]
    exec(set_code(two, 0.1, eps=1e-6), {"optimizer": two})
    assert [g["lr"] for g in two.param_groups] == pytest.approx([1e-3, 1e-5])
    assert [g["eps"] for g in two.param_groups] == [1e-6, 1e-6]
    assert "now 0.01, 0.0001" in set_code(torch.optim.SGD([{"params": [p]}, {"params": [q], "lr": 1e-4}], lr=0.01), 2.0)
