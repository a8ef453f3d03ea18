"""Optimizers with the penalty inside the step: torch's without one, torch's and `regularize` with one."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import wellcond as wc
from wellcond import one_pass
from wellcond import penalties as R  # noqa: N812

NAMES = ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW")
CASES = {
    "SGD": ("SGD", {"lr": 0.1}),
    "SGD momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    "SGD Nesterov": ("SGD", {"lr": 0.1, "momentum": 0.7, "nesterov": True, "maximize": True}),
    "Adagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.05, "initial_accumulator_value": 0.125}),
    "Adagrad maximize": ("Adagrad", {"lr": 0.1, "maximize": True}),
    "RMSprop": ("RMSprop", {"lr": 0.01, "weight_decay": 0.05}),
    "RMSprop centered": ("RMSprop", {"lr": 0.01, "alpha": 0.9, "centered": True, "maximize": True}),
    "RMSprop momentum": ("RMSprop", {"lr": 0.01, "momentum": 0.5, "centered": True, "alpha": 0.8}),
    "Adam": ("Adam", {"lr": 0.02, "weight_decay": 0.05, "betas": (0.8, 0.9)}),
    "Adam amsgrad": ("Adam", {"lr": 0.02, "amsgrad": True, "maximize": True}),
    "Adam decoupled": ("Adam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "AdamW": ("AdamW", {"lr": 0.02, "weight_decay": 0.1}),
    "AdamW tensor lr": ("AdamW", {"lr": torch.tensor(0.02, dtype=torch.float64), "amsgrad": True}),
}
PENALTIES = [R.L1(0.05), R.L2(0.3), R.ElasticNet(0.1), R.MCP(0.05), R.Power(0.2, 3), R.Box(-0.5, 0.7)]
SHAPES = [(6, 5), (4, 3, 3, 3), (7,), (), (1,), (0, 3), (5, 4)]
# A float32 trajectory of a few steps; RMSprop's centered root magnifies rounding.
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 2e-5}, torch.float64: {"rtol": 1e-11, "atol": 1e-12}}


def parameters(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    made[1] = made[1].contiguous(memory_format=torch.channels_last)
    made[-1] = made[-1].t()  # dense, in another order
    return [nn.Parameter(p) for p in made]


def set_gradients(params, t):
    """A quadratic's, with noise."""
    generator = torch.Generator().manual_seed(100 + t)
    for p in params:
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = torch.empty_like(p).copy_((p.detach() - 0.3 + 0.5 * noise).to(p.dtype))


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def run(optimizer, steps=8, start=0):
    params = parameters_of(optimizer)
    for t in range(start, start + steps):
        set_gradients(params, t)
        optimizer.step()
    return params


def built(name, params, options, penalty=None, space="intrinsic", ours=True, **more):
    """Our class, or torch's with the same penalty attached, on all parameters."""
    options = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    if ours:
        inside = {"penalty": penalty, "space": space, "penalized": "all"} if penalty else {}
        return getattr(wc.optim, name)(params, **options, **inside, compile=False, **more)
    optimizer = getattr(torch.optim, name)(params, **options)
    if penalty:
        wc.regularize(optimizer, penalty, space=space, params="all", compile=False)
    return optimizer


def pair(case, penalty=None, space="intrinsic", dtype=torch.float32, **options):
    name, chosen = CASES[case]
    return [built(name, parameters(dtype), {**chosen, **options}, penalty, space, ours=ours) for ours in (True, False)]


def same_state(a, b):
    """Of two state_dicts, bit for bit."""
    assert a.keys() == b.keys()
    for x, y in zip(a["param_groups"], b["param_groups"], strict=True):
        assert x == y
    assert a["state"].keys() == b["state"].keys()
    for i, state in a["state"].items():
        assert state.keys() == b["state"][i].keys()
        for key, value in state.items():
            assert value.dtype == b["state"][i][key].dtype
            assert torch.equal(value, b["state"][i][key])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a, b, **tolerance):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x.detach(), y.detach(), **(tolerance or CLOSE[x.dtype]))


# -- drop-in --


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_a_penalty_it_is_torchs_bit_for_bit(case, dtype):
    ours, torchs = pair(case, dtype=dtype)
    assert ours.regularization is None
    assert same(run(ours), run(torchs))
    same_state(ours.state_dict(), torchs.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_the_arguments_are_torchs_and_ours_after_them(name):
    ours = list(inspect.signature(getattr(wc.optim, name)).parameters.values())
    theirs = list(inspect.signature(getattr(torch.optim, name)).parameters.values())
    assert [(p.name, p.kind, p.default) for p in ours[: len(theirs)]] == [(p.name, p.kind, p.default) for p in theirs]
    extra = ["penalty", "space", "penalized", "model", "compile", "state_dtype"]
    assert [p.name for p in ours[len(theirs) :]] == extra


@pytest.mark.parametrize("name", NAMES)
def test_sparse_complex_and_differentiable_go_to_torch(name):
    def results(ours):
        p = nn.Parameter(torch.ones(3, 2, dtype=torch.complex64))
        p.grad = torch.full_like(p, 1 + 2j)
        built(name, [p], {"lr": 0.1}, ours=ours).step()
        x = torch.ones(3, requires_grad=True)
        q = x.clone()
        q.grad = x * 2
        built(name, [q], {"lr": 0.1, "differentiable": True}, ours=ours).step()
        stepped = [p.detach(), *torch.autograd.grad(q.sum(), x)]
        if name in ("SGD", "Adagrad"):
            r = nn.Parameter(torch.ones(3, 2))
            r.grad = torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (3, 2))
            built(name, [r], {"lr": 0.1}, ours=ours).step()
            stepped.append(r.detach())
        return stepped

    assert same(results(True), results(False))


# -- a penalty inside --


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)
@pytest.mark.parametrize("space", ["intrinsic", "original", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_penalty_inside_is_the_one_attached_to_torchs(case, penalty, space, dtype):
    ours, torchs = pair(case, penalty, space, dtype)
    close(run(ours), run(torchs))
    a, b = ours.state_dict(), torchs.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert [list(s) for s in a["state"].values()] == [list(s) for s in b["state"].values()]
    for x, y in zip(a["state"].values(), b["state"].values(), strict=True):
        close(x.values(), y.values(), **CLOSE[dtype])


@pytest.mark.parametrize("name", NAMES)
def test_zeros_are_the_same(name):
    ours = built(name, parameters(), {"lr": 0.05}, R.L1(1.0))
    torchs = built(name, parameters(), {"lr": 0.05}, R.L1(1.0), ours=False)
    a, b = run(ours, 30), run(torchs, 30)
    assert any((p == 0).any() for p in a)
    assert all(torch.equal(x == 0, y == 0) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32_and_rounded_once(case, dtype):
    name, options = CASES[case]
    low = built(name, parameters(dtype), options, R.L1(0.05))
    exact = built(name, [nn.Parameter(p.float()) for p in parameters(dtype)], options, R.L1(0.05))
    set_gradients(parameters_of(low), 0)
    for p, q in zip(parameters_of(low), parameters_of(exact), strict=True):
        q.grad = torch.empty_like(q).copy_(p.grad)
    low.step()
    exact.step()
    for p, q in zip(parameters_of(low), parameters_of(exact), strict=True):
        assert torch.equal(p.detach(), q.detach().to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_selected_takes_torchs_step(name):
    ours = getattr(wc.optim, name)(parameters(), lr=0.05, penalty=R.Box(-0.1, 0.1), space="original", compile=False)
    torchs = getattr(torch.optim, name)(parameters(), lr=0.05)
    for p, q in zip(run(ours), run(torchs), strict=True):
        if p.dim() >= 2:
            assert p.numel() == 0 or p.abs().max() <= 0.1
        else:
            torch.testing.assert_close(p, q)


def test_groups_schedules_and_parameters_without_gradient():
    def build(ours):
        a, b, c = parameters()[:3]
        groups = [
            {"params": [a], "lr": 0.1, "maximize": True},
            {"params": [b], "weight_decay": 0.2, "betas": (0.5, 0.6)},
        ]
        optimizer = built("AdamW", groups, {"lr": 0.01}, R.L1(0.1), ours=ours)
        optimizer.add_param_group({"params": [c, nn.Parameter(torch.ones(2))], "amsgrad": True, "eps": 1e-3})
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        for t in range(6):
            set_gradients([a, b, c], t)
            if t == 2:
                b.grad = None
            torch.nn.utils.clip_grad_norm_([a, b, c], 1.0)
            optimizer.step()
            schedule.step()
            wc.regularizations_of(optimizer)[0].strength *= 0.9
        return optimizer

    ours, torchs = build(True), build(False)
    close(parameters_of(ours), parameters_of(torchs))
    assert [int(s["step"]) for s in ours.state.values()] == [6, 5, 6]
    assert torch.equal(parameters_of(ours)[3], torch.ones(2))


def test_names_and_default_selection_come_from_the_model():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    optimizer = wc.optim.Adam(model.parameters(), penalty=R.L1(0.1), model=model)
    assert optimizer.regularization.names() == ["1.weight", "3.weight"]
    optimizer = wc.optim.Adam(model.parameters(), penalty=R.L1(0.1), model=model, penalized="3.*")
    assert optimizer.regularization.names() == ["3.weight", "3.bias"]
    with pytest.warns(UserWarning, match="embedding") as caught:
        wc.optim.Adam(model.parameters(), penalty=R.L1(0.1), model=model, penalized="all")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_parameters_does_not_matter(name):
    straight, turned = parameters(), parameters()
    first = built(name, straight, {"lr": 0.05}, R.ElasticNet(0.1))
    second = built(name, turned[::-1], {"lr": 0.05}, R.ElasticNet(0.1))
    for t in range(4):
        set_gradients(straight, t)
        set_gradients(turned, t)
        first.step()
        second.step()
    assert same(straight, turned)


@pytest.mark.parametrize("name", NAMES)
def test_closures(name):
    def build(ours):
        p = nn.Parameter(torch.tensor([[2.0, -1.0, 0.1]]))
        optimizer, losses, calls = built(name, [p], {"lr": 0.1}, R.L1(0.1), ours=ours), [], []

        def closure():
            calls.append(1)
            optimizer.zero_grad()
            loss = (p - 1).square().sum()
            loss.backward()
            return loss

        losses += [optimizer.step(closure).item() for _ in range(3)]
        losses += [optimizer.step(closure=closure).item() for _ in range(3)]
        assert len(calls) == 6
        return torch.tensor(losses)

    torch.testing.assert_close(build(True), build(False))


@pytest.mark.parametrize("penalty", [None, R.L1(0.1), R.GroupL1(0.1)])
def test_step_hooks_run_once(penalty):
    for name in NAMES:
        p = nn.Parameter(torch.ones(2, 2))
        optimizer, calls = built(name, [p], {"lr": 0.1}, penalty), []
        optimizer.register_step_pre_hook(lambda *_, calls=calls: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append("after"))
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert calls == ["before", "after"]


@pytest.mark.parametrize("penalty", [R.GroupL1(0.2), R.SparseGroupL1(0.2), R.NuclearNorm(0.2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_penalties_of_more_than_one_entry_take_a_second_pass(penalty, name):
    results = []
    for ours in (True, False):
        params = [nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(i))) for i in range(3)]
        results.append(run(built(name, params, {"lr": 0.1}, penalty, "euclidean", ours=ours)))
    assert same(*results)


def test_beside_other_regularizations_it_takes_its_turn():
    """The projection comes last, though it is the one that is built in."""

    def build(ours):
        optimizer = built("Adam", parameters(), {"lr": 0.1}, R.Box(0.2, 1.0), "original", ours=ours)
        wc.regularize(optimizer, R.L1(0.3), space="original", params="all", compile=False)
        return optimizer

    ours, torchs = build(True), build(False)
    assert same(run(ours), run(torchs))
    assert all(((p >= 0.2) & (p <= 1)).all() for p in parameters_of(ours))
    assert isinstance(ours.regularization.penalty, R.Box)
    with pytest.raises(ValueError, match="already"):
        wc.regularize(ours, R.Box(0, 1), params="all")


def test_removed_it_is_torchs():
    ours, torchs = pair("AdamW", R.L1(0.1))
    for optimizer in (ours, torchs):
        run(optimizer, 3)
        wc.regularizations_of(optimizer)[0].remove()
    assert ours.regularization is None
    torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p, q in zip(parameters_of(ours), parameters_of(torchs), strict=True):
        q.data.copy_(p)
    assert same(run(ours, 3, start=3), run(torchs, 3, start=3))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_preconditioner_like_torchs(name):
    ours, torchs = (built(name, parameters(), {"lr": 0.1}, ours=ours) for ours in (True, False))
    run(ours), run(torchs)
    scales = [wc.preconditioner_of(optimizer).scales for optimizer in (ours, torchs)]
    assert same(*scales)
    penalized = built(name, parameters(), {"lr": 0.1}, R.L1(0.1))
    run(penalized)
    assert penalized.regularization.value() > 0
    assert "L1(0.1)" in repr(penalized.regularization)


# -- checkpoints and copies --


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("penalty", [None, R.L1(0.1)])
def test_checkpoints_go_both_ways_with_torchs_class(case, penalty):
    ours, torchs = pair(case, penalty)
    run(ours, 4), run(torchs, 4)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    same_state(saved, ours.state_dict())
    other = copy.deepcopy(torchs.state_dict())
    torchs.load_state_dict(copy.deepcopy(saved))
    ours.load_state_dict(other)
    ours.load_state_dict(copy.deepcopy(saved))
    same_state(ours.state_dict(), torchs.state_dict())
    for p, q in zip(parameters_of(ours), parameters_of(torchs), strict=True):
        q.data.copy_(p)
    close(run(ours, 4, start=4), run(torchs, 4, start=4))


@pytest.mark.parametrize("copied", ["deepcopy", "twice", "pickle", "torch.save"])
def test_copies_have_the_penalty(copied):
    for name in NAMES:
        optimizer = built(name, parameters(), {"lr": 0.1}, R.L1(0.1))
        run(optimizer, 2)
        if copied == "pickle":
            other = pickle.loads(pickle.dumps(optimizer))
        elif copied == "torch.save":
            file = io.BytesIO()
            torch.save(optimizer, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        else:
            other = copy.deepcopy(optimizer)
            other = copy.deepcopy(other) if copied == "twice" else other
        assert other.regularization is not optimizer.regularization
        other.regularization.strength = 0.1
        assert same(run(optimizer, 3, start=2), run(other, 3, start=2))
        optimizer.regularization.remove()
        assert other.regularization is not None


# -- mixed precision --


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "Adam", "AdamW"])
@pytest.mark.parametrize("penalty", [R.L1(0.1), R.L2(0.1)], ids=str)
def test_a_fused_step_that_the_scaler_scales_or_skips(name, penalty):
    results = []
    for ours in (True, False):
        params = parameters()[:3]
        optimizer = built(name, params, {"lr": 0.1, "fused": True}, penalty, ours=ours)
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        before = [p.detach().clone() for p in params]
        for t in range(4):
            set_gradients(params, t)
            for p in params:
                p.grad.mul_(scaler.scale(torch.ones(())))
            if t == 0:
                params[0].grad[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            if t == 0:
                assert same(params, before)
        results.append(params)
    assert same(*results)


def test_a_scaler_without_fused():
    ours, torchs = pair("AdamW", R.L1(0.1))
    for optimizer in (ours, torchs):
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        for t in range(3):
            set_gradients(parameters_of(optimizer), t)
            for p in parameters_of(optimizer):
                p.grad.mul_(scaler.scale(torch.ones(())))
            scaler.step(optimizer)
            scaler.update()
    close(parameters_of(ours), parameters_of(torchs))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("penalty", [None, R.L1(0.05), R.GroupL1(0.05)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_state_is_that_of_float32_parameters(case, penalty, dtype):
    name, options = CASES[case]
    space = "euclidean"
    wide = built(name, parameters(dtype)[:2], options, penalty, space, state_dtype=torch.float32)
    exact = built(name, [nn.Parameter(p.float()) for p in parameters(dtype)[:2]], options, penalty, space, ours=False)
    for t in range(5):
        set_gradients(parameters_of(wide), t)
        for p, q in zip(parameters_of(wide), parameters_of(exact), strict=True):
            q.data.copy_(p)
            q.grad = torch.empty_like(q).copy_(p.grad)
        wide.step()
        exact.step()
        for p, q in zip(parameters_of(wide), parameters_of(exact), strict=True):
            torch.testing.assert_close(p.detach().float(), q.detach(), rtol=torch.finfo(dtype).eps, atol=1e-6)
            for key, value in wide.state[p].items():
                assert value.dtype == torch.float32
                torch.testing.assert_close(value, exact.state[q][key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_float32_state_survives_bit_for_bit(case):
    name, options = CASES[case]

    def build(params=None):
        params = params or parameters(torch.bfloat16)
        return built(name, params, options, R.L1(0.05), state_dtype=torch.float32)

    optimizer = build()
    run(optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    loaded = build([nn.Parameter(p.detach().clone()) for p in parameters_of(optimizer)])
    loaded.load_state_dict(copy.deepcopy(saved))
    same_state(loaded.state_dict(), saved)
    copies = [copy.deepcopy(copy.deepcopy(optimizer)), pickle.loads(pickle.dumps(optimizer)), loaded]
    expected = run(optimizer, 2, start=3)
    for other in copies:
        assert same(run(other, 2, start=3), expected)
        same_state(other.state_dict(), optimizer.state_dict())
    # Torch's class takes it, and gives its own.
    torchs = built(name, parameters(torch.bfloat16), options, ours=False)
    torchs.load_state_dict(copy.deepcopy(saved))
    run(torchs, 1)
    loaded.load_state_dict(torchs.state_dict())
    for state, theirs in zip(loaded.state.values(), torchs.state.values(), strict=True):
        assert all(value.dtype == torch.float32 for value in state.values())
        assert all(torch.equal(value, theirs[key].float()) for key, value in state.items())


# -- refusals --


def test_refusals():
    plain, matrix = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))
    complex_ = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    adam, l1 = wc.optim.Adam, R.L1(0.1)
    wide = {"state_dtype": torch.float32}
    for params, options, message in [
        ([complex_], {"penalty": l1}, "complex"),
        ([complex_], wide, "complex"),
        ([matrix], {"penalty": l1, "capturable": True}, "capturable"),
        ([matrix], {"penalty": l1, "differentiable": True}, "differentiable"),
        ([matrix], {**wide, "capturable": True}, "capturable"),
        ([matrix], {**wide, "fused": True}, "fused"),
        ([matrix], {"state_dtype": torch.float64}, "give torch.float32"),
        ([matrix], {"penalized": [matrix]}, "give penalty="),
        ([plain], {"penalty": l1}, "no parameter"),
        ([matrix], {"penalty": l1, "space": "other"}, "space"),
        ([matrix], {"penalty": R.NuclearNorm(0.1), "space": "original"}, "NuclearNorm"),
    ]:
        with pytest.raises(ValueError, match=message):
            adam(params, **options)
    with pytest.raises(TypeError, match="one of wellcond"):
        adam([matrix], penalty=0.1)


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_a_sparse_gradient_under_a_penalty_is_refused(name):
    rows, other = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    rows.grad, other.grad = torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (3, 2)), torch.ones(3, 2)
    for options in ({"penalty": R.L1(0.1)}, {"state_dtype": torch.float32}):
        with pytest.raises(ValueError, match="sparse gradient"):
            getattr(wc.optim, name)([rows, other], lr=0.1, compile=False, **options).step()
        assert torch.equal(rows, torch.ones(3, 2))
    optimizer = getattr(wc.optim, name)([rows, other], lr=0.1, penalty=R.Box(-0.5, 0.5), penalized=[other])
    optimizer.step()
    assert rows[1, 0] == 0.9 if name == "SGD" else rows[1, 0] < 1
    assert (other == 0.5).all()


# -- one pass --


class Largest(TorchDispatchMode):
    """The largest tensor that was made, views and what was there before left out."""

    def __init__(self, known):
        super().__init__()
        self.known, self.entries = {t.untyped_storage().data_ptr() for t in known}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.entries = max(self.entries, t.numel())
        return out


@pytest.mark.parametrize("name", NAMES)
def test_the_eager_step_needs_no_memory_of_a_parameters_size(name):
    p = nn.Parameter(torch.randn(3 * one_pass.BLOCK))
    optimizer = built(name, [p], {"lr": 0.1}, R.L1(0.1))
    p.grad = torch.randn_like(p)
    optimizer.step()
    with Largest([p, p.grad, *optimizer.state.get(p, {}).values()]) as largest:
        optimizer.step()
    assert 0 < largest.entries <= one_pass.BLOCK
    torchs = built(name, [nn.Parameter(torch.ones(3))], {"lr": 0.1}, ours=False)
    torchs.param_groups[0]["params"][0].grad = torch.ones(3)
    torchs.step()
    assert [list(s) for s in optimizer.state.values()] == [list(s) for s in torchs.state.values()]


def test_compiled_is_eager_to_rounding_and_compiles_once():
    torch._dynamo.reset()
    onepass_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def build(compiled):
        params = [*parameters(), *(nn.Parameter(torch.linspace(-1, 1, n).clone()) for n in (2, 3, 33, 5000, 70001))]
        optimizer = wc.optim.AdamW(params, lr=0.02, penalty=R.L1(0.3), penalized=params[:-2], compile=compiled)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for t in range(5):
            set_gradients(params[: len(params) - t], t)
            optimizer.step()
            schedule.step()
            optimizer.regularization.strength *= 0.9
        return optimizer

    compiled, eager = build(True), build(False)
    close(parameters_of(compiled), parameters_of(eager))
    for a, b in zip(parameters_of(compiled), parameters_of(eager), strict=True):
        assert torch.equal(a == 0, b == 0)
        close(compiled.state[a].values(), eager.state[b].values())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == onepass_before + 1


def test_a_group_can_not_have_a_penalty_of_its_own():
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"group has penalty; give it to the optimizer.*wellcond\.regularize"):
        wc.optim.AdamW([{"params": [p], "penalty": wc.penalties.L1(5.0)}])
    optimizer = wc.optim.AdamW([p], penalty=wc.penalties.L1(0.1))
    with pytest.raises(ValueError, match="group has space, strength"):
        optimizer.add_param_group({"params": [q], "strength": 1.0, "space": "original"})
    assert "L1(0.1) on z" in repr(optimizer)
    assert "L1" not in repr(wc.optim.AdamW([q]))
