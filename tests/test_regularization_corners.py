"""Penalties on unusual optimizers, parameters and gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import wellcond as wc
from tests.problems import make
from tests.regularized import (
    FORMS,
    GRAM,
    MOMENT,
    PENALTIES,
    TOP,
    Stateless,
    Transformerish,
    X,
    network,
    ones,
    refused,
    same,
    train,
    y,
)
from wellcond import penalties as R  # noqa: N812
from wellcond.steps import spaces


def test_an_optimizer_without_state_is_penalized_too():
    class Registered(Stateless):
        pass

    @wc.preconditioners.reads(Registered)
    def squared_scale(state, group):
        return torch.ones(2, 2, dtype=torch.float64)

    for build, space in ((Stateless, "euclidean"), (Registered, "intrinsic"), (Registered, "original")):
        p = ones()
        optimizer = build([p])
        wc.regularize(optimizer, R.L1(1.0), space=space)
        p.grad = torch.zeros_like(p)
        optimizer.step()
        assert torch.allclose(p, torch.full_like(p, 0.9)), (build, space)
    p, q = ones(), ones()
    lbfgs = torch.optim.LBFGS([p, q], lr=0.1)
    wc.regularize(lbfgs, R.L1(1.0), space="euclidean")
    p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
    lbfgs.step(lambda: 0.0)
    assert torch.allclose(p, torch.full_like(p, 0.9))
    assert torch.allclose(q, torch.full_like(p, 0.9))


class Threshold(R.Penalty):
    """A user's penalty: only what the base class asks for."""

    def __init__(self, strength, knee):
        super().__init__(strength)
        self.knee = knee

    def value(self, x):
        return self.strength * (x.abs() > self.knee).sum()

    def prox(self, x, step):
        return torch.where(x.abs() > self.knee, 0.0, x)


def test_two_penalties_of_a_users_class_are_two():
    for knee, expected in ((0.5, 0.0), (100.0, 1.0)):
        p = ones()
        optimizer = torch.optim.SGD([p], lr=0.1)
        wc.regularize(optimizer, Threshold(1.0, knee))
        p.grad = torch.zeros_like(p)
        optimizer.step()
        assert (p == expected).all()


@pytest.mark.parametrize("with_closure", [False, True])
def test_a_subclass_that_calls_the_step_of_its_base_is_penalized_once(with_closure):
    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    torch.optim.SGD([ones()], lr=0.1)  # from here on torch has wrapped both steps
    for penalty, space in ((R.L2(1.0), "original"), (R.L2(1.0), "euclidean"), (R.L1(1.0), "euclidean")):
        p = ones()
        optimizer = Mine([p], lr=0.1)
        wc.regularize(optimizer, penalty, space=space)

        def closure(p=p):
            p.grad = torch.zeros_like(p)
            return 0.0

        for t in range(1, 3):  # the second after a first that raised in the middle
            if t == 2:
                with pytest.raises(ZeroDivisionError):
                    optimizer.step(lambda: 1 / 0)
            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            by_hand = 0.9**t if isinstance(penalty, R.L2) else 1 - 0.1 * t
            assert torch.allclose(p, torch.full_like(p, by_hand)), (penalty, space, t)


def test_a_step_that_raised_leaves_nothing_behind():
    def run(fail):
        p = ones()
        optimizer = torch.optim.Adam([p], lr=0.1)
        wc.regularize(optimizer, R.Power(0.5, q=1.5))
        for t in range(3):
            p.grad = torch.full_like(p, 0.5)
            if t == 1 and fail:
                hook = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    optimizer.step()
                hook.remove()
            optimizer.step()
        return p.detach()

    assert torch.equal(run(fail=True), run(fail=False))


def test_sparse_gradients_go_by_prox_only():
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.01)
    wc.regularize(optimizer, R.L1(0.1), via="gradient")
    table(torch.tensor([0])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(ValueError, match="parameter 0 of group 0 has a sparse gradient"):
        optimizer.step()
    assert torch.equal(before, table.weight)
    with_momentum = torch.optim.SGD(table.parameters(), lr=0.1, momentum=0.9)  # whose buffer is sparse
    wc.regularize(with_momentum, R.L1(0.5))
    with_momentum.step()
    assert torch.equal(before[1:], table.weight[1:])


@pytest.mark.parametrize("space", spaces.SPACES)
@pytest.mark.parametrize("name", [name for name in PENALTIES if name not in ("L2", "Box", "NonNegative")])
def test_a_warm_up_from_a_tensor_learning_rate_of_zero_moves_nothing(name, space):
    if name == "NuclearNorm" and space == "original":
        return
    p = nn.Parameter(torch.tensor([[1.0, 0.0, 2.0], [1.0, 3.0, -2.0]], dtype=torch.float64))
    before = p.detach().clone()
    optimizer = torch.optim.Adam([p], lr=torch.tensor(0.0))
    wc.regularize(optimizer, PENALTIES[name], space=space)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.allclose(p, before, rtol=1e-12, atol=0)  # a singular value decomposition rounds


@pytest.mark.parametrize("name", PENALTIES)
def test_a_second_moment_that_overflowed_makes_no_nan(name):
    for space in spaces.SPACES:
        if name == "NuclearNorm" and space == "original":
            continue
        p = nn.Parameter(torch.tensor([[1.0, 0.0], [0.5, -2.0]], dtype=torch.float32))
        optimizer = torch.optim.Adagrad([p], lr=0.1)
        wc.regularize(optimizer, PENALTIES[name], space=space, via="prox")
        p.grad = torch.tensor([[1e25, 1e25], [1.0, -1e25]])
        optimizer.step()
        assert p.isfinite().all(), (name, space)


@pytest.mark.parametrize("form", ["single tensor", "fused"])
def test_adamw_with_a_tensor_learning_rate_bit_for_bit(form):
    for seed in range(30):
        torch.manual_seed(seed)
        lr, strength = torch.rand(()) * 0.1, float(torch.rand(()))
        start, gradient = torch.randn(9), torch.randn(9)
        p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        mine = torch.optim.Adam([p], lr=lr, **FORMS[form])
        wc.regularize(mine, R.L2(strength), params="all")
        torchs = torch.optim.AdamW([q], lr=lr, weight_decay=strength, **FORMS[form])
        for _ in range(5):
            p.grad, q.grad = gradient.clone(), gradient.clone()
            mine.step()
            torchs.step()
        assert torch.equal(p, q), seed


def test_gradients_that_are_gone_after_the_step_do_not_matter():
    p = ones()
    optimizer = torch.optim.SGD([p], lr=0.1)
    optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
    wc.regularize(optimizer, R.L1(1.0))
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(p, torch.full_like(p, 0.9))


def test_weights_are_freed_with_the_optimizer():
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        handle = wc.regularize(optimizer, R.L1(0.1), model=model)
        train(model, optimizer, 1)
        weight = weakref.ref(model[0].weight)
        del model, optimizer, handle
        assert weight() is None
    finally:
        gc.enable()


def test_what_is_not_in_the_optimizer_is_not_carried_with_it():
    frozen_part, head = nn.Linear(300, 300), nn.Linear(300, 2)
    model = nn.Sequential(frozen_part, head)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    wc.regularize(optimizer, R.L1(0.1), model=model)
    assert len(pickle.dumps(optimizer)) < 20_000


def test_groups_of_the_model_that_are_added_later_are_known():
    model = Transformerish()
    optimizer = torch.optim.SGD(model.encoder[0].parameters(), lr=0.1)
    handle = wc.regularize(optimizer, R.L1(0.1), model=model)
    optimizer.add_param_group(
        {"params": [*model.encoder[1].parameters(), *model.embedding.parameters(), model.wide_bias]}
    )
    assert handle.names() == ["encoder.0.weight", "encoder.1.weight"]


def test_what_comes_with_a_later_group_is_checked_before_the_step():
    p, q = ones(), ones()

    def with_group(extra, *regularizations):
        optimizer = torch.optim.SGD([p], lr=0.1)
        for penalty, params in regularizations:
            wc.regularize(optimizer, penalty, params=params)
        optimizer.add_param_group({"params": [extra]})
        p.grad, extra.grad = torch.ones_like(p), torch.ones_like(extra)
        before = p.detach().clone(), extra.detach().clone()
        with pytest.raises(ValueError, match="parameter 0 of group 1") as caught:
            optimizer.step()
        assert torch.equal(before[0], p)
        assert torch.equal(before[1], extra)
        return str(caught.value)

    shape = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
    optimizer = torch.optim.SGD([p, q], lr=0.1)
    wc.regularize(optimizer, R.L1(0.1), params=lambda x: x is p or x.numel() == 9)
    wc.regularize(optimizer, R.MCP(0.1), params=lambda x: x is q or x.numel() == 9)
    optimizer.add_param_group({"params": [shape]})
    for x in (p, q, shape):
        x.grad = torch.ones_like(x)
    with pytest.raises(ValueError, match="parameter 0 of group 1 is under"):
        optimizer.step()
    assert "no matrix" in with_group(nn.Parameter(torch.ones(3)), (R.NuclearNorm(0.1), "all"))
    assert "complex" in with_group(nn.Parameter(torch.ones(2, 2, dtype=torch.complex64)), (R.L1(0.1), None))


def test_a_compiled_step_runs_the_hooks_as_they_are():
    p, q = ones(dtype=torch.float32), ones(dtype=torch.float32)
    results = []
    for parameter, compiled in ((p, False), (q, True)):
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        wc.regularize(optimizer, R.L1(1.0))
        step_ = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(3):
            parameter.grad = torch.full_like(parameter, 0.5)
            step_()
        results.append(parameter.detach())
    assert torch.equal(*results)


def test_more_bad_input():
    class Unhooked(torch.optim.Optimizer):
        def __init__(self, params):
            self.param_groups, self.defaults, self.state = [{"params": list(params), "lr": 0.1}], {}, {}

        def step(self):
            pass

    with pytest.raises(TypeError, match="does not run step hooks"):
        wc.regularize(Unhooked([ones()]), R.L1(0.1), space="euclidean")
    with pytest.raises(ValueError, match="momentum under 1"):
        wc.regularize(torch.optim.SGD([ones()], lr=0.1, momentum=1.0), R.L1(0.1))
    without_lr = torch.optim.SGD([ones()], lr=0.1)
    without_lr.param_groups[0]["lr"] = None
    with pytest.raises(ValueError, match="give a penalty no step"):
        wc.regularize(without_lr, R.L1(0.1))
    with pytest.raises(ValueError, match="differentiable"):
        wc.regularize(torch.optim.SGD([ones()], lr=0.1, differentiable=True), R.L1(0.1))
    model = network()
    with pytest.raises(ValueError, match="none of the optimizer's parameters is the model's"):
        wc.regularize(torch.optim.SGD(model.parameters(), lr=0.1), R.L1(0.1), model=copy.deepcopy(model))
    refused("class L1", R.L1, TypeError)
    refused("compile is 'yes'", compile="yes", error=TypeError)
    refused("used up", params=iter(()))
    with pytest.raises(ValueError, match="strength of 1e\\+39 is beyond float32"):
        wc.regularize(torch.optim.SGD([ones(dtype=torch.float32)], lr=0.1), R.L1(1e39))
    handle = wc.regularize(torch.optim.SGD([ones()], lr=0.1), R.L1(0.1))
    handle.strength = torch.tensor(0.25)
    assert handle.strength == 0.25
    with pytest.raises(ValueError, match=r"tensor of shape \(2,\)"):
        handle.strength = torch.tensor([0.1, 0.2])
    lazy = nn.LazyLinear(2)
    for params in (None, "all"):
        with pytest.raises(ValueError, match="not initialized"):
            wc.regularize(torch.optim.SGD(lazy.parameters(), lr=0.1), R.L1(0.1), params=params)
    with pytest.raises(TypeError, match=r"@reads\(MyOptimizer\)"):
        wc.preconditioners.reads(lambda state, group: torch.ones(()))

    class Mistyped(Stateless):
        pass

    @wc.preconditioners.reads(Mistyped)
    def squared_scale(state, group):
        return state["V"]

    p = ones()
    optimizer = Mistyped([p])
    wc.regularize(optimizer, R.L1(0.1))
    p.grad = torch.ones_like(p)
    with pytest.raises(KeyError, match="squared_scale uses 'V', which is neither"):
        optimizer.step()


def test_an_argument_of_a_step_that_is_no_closure_is_left_alone():
    class TakesScale(torch.optim.SGD):
        def step(self, scale=1.0):
            for p in self.param_groups[0]["params"]:
                p.data.sub_(scale * p.grad)

    p = ones()
    optimizer = TakesScale([p], lr=0.1)
    wc.regularize(optimizer, R.L1(1.0), space="euclidean")
    p.grad = torch.full_like(p, 0.5)
    optimizer.step(0.5)
    assert torch.allclose(p, torch.full_like(p, 0.65))


def test_expanded_gradients_can_be_added_to():
    p = ones()
    optimizer = torch.optim.SGD([p], lr=0.1)
    wc.regularize(optimizer, R.L2(1.0), space="original")
    p.grad = torch.zeros(1, 1, dtype=torch.float64).expand(2, 2)
    optimizer.step()
    assert torch.allclose(p, torch.full_like(p, 0.9))


def test_a_penalty_object_belongs_to_its_owner():
    penalty = R.L1(0.1)
    handle = wc.regularize(torch.optim.SGD([ones()], lr=0.1), penalty)
    handle.strength = 0.7
    assert penalty.strength == 0.1
    penalty.strength = 5.0
    assert handle.strength == 0.7


def test_optimality_with_a_constraint_beside_and_asgd():
    model = nn.Linear(10, 1, bias=False).double()
    problem = wc.Problem(
        model, lambda o, t: 0.5 * nn.functional.mse_loss(o, t), (torch.tensor(X), torch.tensor(y)[:, None])
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / TOP)
    handles = [wc.regularize(optimizer, penalty) for penalty in (R.L1(0.05), R.NonNegative(), R.L2(0.1))]
    assert handles[0].optimality(problem) > 0.1
    for _ in range(3000):
        model.weight.grad = model.weight.detach() @ GRAM - MOMENT
        optimizer.step()
    assert max(handle.optimality(problem) for handle in handles) < 1e-10
    assert (model.weight == 0).any()
    assert (model.weight > 0).any()
    asgd = torch.optim.ASGD(model.parameters(), lr=0.5 / TOP, lambd=0.1, alpha=0.0)
    handle = wc.regularize(asgd, R.L1(0.05))
    assert "lambd=0.1" in repr(handle)
    for _ in range(6000):
        model.weight.grad = model.weight.detach() @ GRAM - MOMENT
        asgd.step()
    assert handle.optimality(problem) < 1e-8  # it keeps its rate in float32


def test_values_that_need_no_preconditioner_need_no_step():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    handle = wc.regularize(optimizer, R.L1(0.1), space="euclidean")
    expected = 0.1 * sum(float(p.detach().abs().sum()) for p in (model[0].weight, model[2].weight))
    assert float(handle.value()) == pytest.approx(expected)
    optimizer.param_groups[0]["params"] = []
    assert float(handle.value()) == 0


def test_measuring_a_regularized_run_leaves_no_trace():
    case = make("tanh MLP")
    optimizer = torch.optim.Adam(case.model.parameters())
    handle = wc.regularize(optimizer, R.L1(0.01))
    problem = wc.Problem(case.model, case.loss_fn, case.data)
    problem_loss = case.loss_fn(case.model(case.data[0]), case.data[1])
    problem_loss.backward()
    optimizer.step()
    before = [p.detach().clone() for p in case.model.parameters()], [p.grad.clone() for p in case.model.parameters()]
    handle.optimality(problem)
    handle.value()
    handle.sparsity()
    repr(handle)
    assert same(before[0], [p.detach() for p in case.model.parameters()])
    assert same(before[1], [p.grad for p in case.model.parameters()])
