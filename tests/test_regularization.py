"""Penalties on the right parameters of any optimizer: the identities of theory section 4."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso
from torch import nn

import wellcond as wc
from tests.regularized import (
    FORMS,
    GRAM,
    MOMENT,
    PENALTIES,
    SCALES,
    SGDS,
    TOP,
    X,
    batches,
    descend,
    frozen,
    network,
    same,
    step,
    train,
    y,
)
from wellcond import penalties as R  # noqa: N812
from wellcond.steps import spaces

# -- identities: L2 --


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maximize", [False, True])
def test_intrinsic_l2_on_adam_is_adamw_bit_for_bit(form, dtype, maximize):
    mine, torchs = network(dtype), network(dtype)
    adam = torch.optim.Adam(mine.parameters(), lr=1e-2, maximize=maximize, **FORMS[form])
    wc.regularize(adam, R.L2(0.1), params=all)
    adamw = torch.optim.AdamW(torchs.parameters(), lr=1e-2, weight_decay=0.1, maximize=maximize, **FORMS[form])
    assert same(train(mine, adam, 200), train(torchs, adamw, 200))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maximize", [False, True])
def test_original_l2_on_adam_is_its_weight_decay_bit_for_bit(form, dtype, maximize):
    mine, torchs = network(dtype), network(dtype)
    adam = torch.optim.Adam(mine.parameters(), lr=1e-2, maximize=maximize, **FORMS[form])
    wc.regularize(adam, R.L2(0.1), space="original", via="gradient", params="all")
    decayed = torch.optim.Adam(torchs.parameters(), lr=1e-2, weight_decay=0.1, maximize=maximize, **FORMS[form])
    assert same(train(mine, adam, 200), train(torchs, decayed, 200))


@pytest.mark.parametrize("make_optimizer", [torch.optim.NAdam, torch.optim.RAdam])
def test_intrinsic_l2_is_the_decoupled_form_that_torch_has(make_optimizer):
    mine, torchs = network(), network()
    optimizer = make_optimizer(mine.parameters(), lr=1e-2)
    wc.regularize(optimizer, R.L2(0.1), params="all")
    decoupled = make_optimizer(torchs.parameters(), lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True)
    assert same(train(mine, optimizer), train(torchs, decoupled))


@pytest.mark.parametrize(
    ("make_optimizer", "rate"),
    [
        (lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1), lambda t: 0.05 / (1 + (t - 1) * 0.1)),
        (lambda p: torch.optim.RMSprop(p, lr=1e-2), lambda t: 1e-2),
        (lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9), lambda t: 1e-2 / 0.1),
        (lambda p: torch.optim.Adamax(p, lr=1e-2), lambda t: 1e-2),
        (lambda p: torch.optim.Adadelta(p, lr=0.5), lambda t: 0.5),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), lambda t: 0.1 * 0.5 / 0.1),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True), lambda t: 0.1 / 0.2),
        (lambda p: torch.optim.ASGD(p, lr=0.1, lambd=0.5), lambda t: 0.1 / (1 + 0.5 * 0.1 * (t - 1)) ** 0.75),
    ],
    ids=["Adagrad", "RMSprop", "RMSprop momentum", "Adamax", "Adadelta", "SGD dampened", "Nesterov", "ASGD"],
)
def test_every_optimizer_gets_its_decoupled_decay(make_optimizer, rate):
    mine, by_hand = network(), network()
    optimizer, plain = make_optimizer(mine.parameters()), make_optimizer(by_hand.parameters())
    wc.regularize(optimizer, R.L2(0.1), params="all")
    data = batches()
    for t in range(1, 21):
        step(mine, optimizer, data[t % 3])
        plain.zero_grad()
        nn.functional.cross_entropy(by_hand(data[t % 3][0]), data[t % 3][1]).backward()
        with torch.no_grad():
            for p in by_hand.parameters():
                p.mul_(1 - rate(t) * 0.1)
        plain.step()
    for p, q in zip(mine.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)


def test_a_power_of_two_by_its_gradient_is_l2():
    # The general formula of theory 4.4, with P of the step and p before it, against AdamW.
    mine, torchs = network(), network()
    adam = torch.optim.Adam(mine.parameters(), lr=1e-2)
    wc.regularize(adam, R.Power(0.1, q=2), params="all")
    adamw = torch.optim.AdamW(torchs.parameters(), lr=1e-2, weight_decay=0.1)
    for p, q in zip(train(mine, adam), train(torchs, adamw), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


def test_l1_by_its_gradient_in_intrinsic_space_is_that_of_theory_4_3():
    model = network()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-2)
    wc.regularize(optimizer, R.L1(0.3), via="gradient", params="all")
    data = batches()
    for t in range(5):
        before = [p.detach().clone() for p in model.parameters()]
        step(model, optimizer, data[t % 3])
        P = wc.preconditioner_of(optimizer)
        for p, b, s in zip(model.parameters(), before, P.scales, strict=True):
            expected = b - 1e-2 * s**2 * p.grad - 1e-2 * 0.3 * s * b.sign()
            assert torch.allclose(p, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("space", spaces.SPACES)
@pytest.mark.parametrize("name", SGDS)
def test_sgd_with_l1_reaches_the_lasso(name, space):
    expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y).coef_
    assert 2 <= (expected == 0).sum() <= 8
    w, _ = descend(SGDS[name], R.L1(0.1), space=space)
    assert np.abs(w.numpy() - expected).max() < 1e-8
    assert ((w == 0).numpy() == (expected == 0)).all()


@pytest.mark.parametrize("name", ["plain", "heavy ball"])
def test_sgd_with_an_elastic_net_reaches_scikit_learns(name):
    expected = ElasticNet(alpha=0.2, l1_ratio=0.7, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y).coef_
    w, _ = descend(SGDS[name], R.ElasticNet(0.2, l1_ratio=0.7))
    assert np.abs(w.numpy() - expected).max() < 1e-8


def test_with_a_frozen_preconditioner_intrinsic_l1_is_the_weighted_lasso():
    scaled = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X * SCALES.numpy(), y)
    expected = scaled.coef_ * SCALES.numpy()  # the plain lasso in z: weights 1/P_ii in p
    w, _ = descend(frozen, R.L1(0.1), scales=SCALES, steps=20_000)
    assert np.abs(w.numpy() - expected).max() < 1e-8
    plain = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14).fit(X, y).coef_
    assert np.abs(expected - plain).max() > 0.01  # another problem


def test_with_a_frozen_preconditioner_original_l1_is_the_plain_lasso():
    expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y).coef_
    w, _ = descend(frozen, R.L1(0.1), scales=SCALES, steps=20_000, space="original")
    assert np.abs(w.numpy() - expected).max() < 1e-8


def test_euclidean_l1_with_a_frozen_preconditioner_is_neither():
    scaled = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X * SCALES.numpy(), y)
    plain = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14).fit(X, y).coef_
    w, _ = descend(frozen, R.L1(0.1), scales=SCALES, steps=20_000, space="euclidean")
    assert np.abs(w.numpy() - plain).max() > 0.01
    assert np.abs(w.numpy() - scaled.coef_ * SCALES.numpy()).max() > 0.01


@pytest.mark.parametrize("space", ["original", "intrinsic"])
def test_group_l1_is_stationary_in_its_space(space):
    groups = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 3]])
    penalty = R.GroupL1(0.3, groups=groups)
    w, _ = descend(frozen, penalty, scales=SCALES, steps=8_000, space=space)
    gradient = (w @ GRAM - MOMENT).reshape(1, 10)
    scales = SCALES if space == "intrinsic" else torch.ones(10, dtype=torch.float64)
    assert float(penalty.residual(w.reshape(1, 10) / scales, gradient * scales).norm()) < 1e-8
    zero = [bool((w[groups[0] == g] == 0).all()) for g in range(4)]
    assert any(zero)
    assert not all(zero)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("seed", range(3))
def test_the_intrinsic_prox_is_the_prox_in_z_carried_back(name, seed):
    torch.manual_seed(seed)
    u, scale = torch.randn(5, 4, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64) * 3 + 0.01
    carried = scale * PENALTIES[name].prox(u / scale, 0.7)
    assert torch.allclose(spaces.prox(PENALTIES[name], "intrinsic", u, 0.7, scale**2), carried, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("space", spaces.SPACES)
@pytest.mark.parametrize("name", PENALTIES)
def test_a_step_is_the_optimizers_and_then_the_prox(name, space):
    """Through the hooks, against the definition with the P that `preconditioner_of` reads."""
    if name == "NuclearNorm" and space == "original":
        return  # refused, tested below
    mine, plain = network(), network()
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.1)
    wc.regularize(optimizer, PENALTIES[name], space=space, via="prox")
    other = torch.optim.Adam(plain.parameters(), lr=0.1)
    data = batches()
    for t in range(6):
        with torch.no_grad():
            for p, q in zip(plain.parameters(), mine.parameters(), strict=True):
                p.copy_(q)
        step(mine, optimizer, data[t % 3])
        step(plain, other, data[t % 3])
        scales = wc.preconditioner_of(other).scales
        for p, u, scale in zip(mine.parameters(), plain.parameters(), scales, strict=True):
            expected = spaces.prox(PENALTIES[name], space, u.detach(), 0.1, scale**2) if u.dim() > 1 else u
            assert torch.allclose(p, expected, rtol=1e-10, atol=1e-13), (t, tuple(p.shape))


def test_full_batch_adam_with_intrinsic_l1_settles_at_the_lasso_of_strength_tau_squared():
    # Theory 4.6: active |g| = τ², zero where |g| ≤ τ², while α·λ_max(H)/τ² is under the bound of 38.
    tau = 0.3
    assert 1e-3 * TOP / tau**2 < 38
    expected = Lasso(alpha=tau**2, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y).coef_
    w, _ = descend(lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-12), R.L1(tau), steps=30_000)
    gradient = (w @ GRAM - MOMENT).abs()
    assert ((w == 0).numpy() == (expected == 0)).all()
    assert torch.allclose(gradient[w != 0], torch.tensor(tau**2, dtype=torch.float64), rtol=1e-3)
    assert (gradient[w == 0] <= tau**2 * 1.001).all()
    assert np.abs(w.numpy() - expected).max() < 1e-3


@pytest.mark.parametrize(
    ("tau", "lr", "noise"), [(0.2, 1e-3, 0.5), (0.02, 1e-2, 0.0)], ids=["gradient noise", "beyond the stability bound"]
)
def test_otherwise_it_settles_where_the_mean_gradient_balances_the_root_of_the_rms_gradient(tau, lr, noise):
    # Theory 4.6: |E g| = τ·v̂^(1/4) on what is never zero, √v̂ set by noise or by the oscillation.
    torch.manual_seed(0)
    w = nn.Parameter(torch.zeros(1, 10, dtype=torch.float64))
    optimizer = torch.optim.Adam([w], lr=lr)
    wc.regularize(optimizer, R.L1(tau))
    assert noise or lr * TOP / tau**2 > 38
    mean, root, zero, counted = (torch.zeros(10, dtype=torch.float64) for _ in range(4))
    for t in range(16_000):
        g = w.detach() @ GRAM - MOMENT
        w.grad = g + noise * torch.randn_like(g)
        optimizer.step()
        if t >= 8_000:
            mean += g[0]
            root += optimizer.state[w]["exp_avg_sq"][0] ** 0.25
            zero += w.detach()[0] == 0
            counted += 1
    active = zero == 0
    assert active.sum() >= 2
    ratio = (mean / counted).abs()[active] / (tau * (root / counted)[active])
    assert ((ratio - 1).abs() < (0.1 if noise else 0.02)).all()  # the mean of a random walk
    assert (((mean / counted).abs()[active] / tau**2 - 1).abs() > 0.2).all()  # and not at that of a full batch


def test_adamw_rests_where_every_weight_is_one_over_its_strength():
    # Theory 4.6, a gradient that stays away from zero.
    w = nn.Parameter(torch.tensor([3.0, 0.1], dtype=torch.float64))
    optimizer = torch.optim.Adam([w], lr=1e-2)
    wc.regularize(optimizer, R.L2(0.5), params="all")
    for _ in range(5000):
        w.grad = torch.tensor([1.0, -7.0], dtype=torch.float64)
        optimizer.step()
    assert torch.allclose(w.detach(), torch.tensor([-2.0, 2.0], dtype=torch.float64), rtol=1e-6)


@pytest.mark.parametrize(("space", "power"), [("original", 1.0), ("intrinsic", 0.5), ("euclidean", 0.0)])
def test_the_unit_of_a_strength(space, power):
    # docs/l1-with-adam.md: a loss times 16 and a strength times 16, 4 or 1 give the same run.
    results = []
    for factor in (1.0, 16.0):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02, eps=0.0)
        wc.regularize(
            optimizer,
            R.L1({"original": 0.003, "intrinsic": 0.03, "euclidean": 0.3}[space] * factor**power),
            space=space,
        )
        for t in range(30):
            optimizer.zero_grad()
            (factor * nn.functional.cross_entropy(model(batches()[t % 3][0]), batches()[t % 3][1])).backward()
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    for p, q in zip(*results, strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)
    assert any((p == 0).any() for p in results[0])
