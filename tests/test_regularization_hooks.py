"""Penalties through step hooks: copies, closures, scalers, checkpoints; precision, memory and devices."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

import wellcond as wc
from tests.regularized import (
    FORMS,
    GRAM,
    MOMENT,
    PENALTIES,
    batches,
    network,
    ones,
    same,
    train,
)
from wellcond import penalties as R  # noqa: N812
from wellcond.hooks import attachment_of
from wellcond.steps import spaces

# -- traps of hooks --


def sparse_run(steps, resume_at=None, form="single tensor", penalty=None, amp=False, **options):
    """Train with a scheduler, clipping and mixed precision; taken up in the middle from a checkpoint in new objects."""

    def fresh():
        model = network(torch.float32)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02, **FORMS[form])
        wc.regularize(optimizer, penalty or R.L1(0.05), **options)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
        return model, optimizer, scheduler, torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=amp)

    model, optimizer, scheduler, scaler = fresh()
    data = batches(torch.float32)
    for t in range(steps):
        if t == resume_at:
            buffer = io.BytesIO()
            torch.save([x.state_dict() for x in (model, optimizer, scheduler, scaler)], buffer)
            buffer.seek(0)
            model, optimizer, scheduler, scaler = fresh()
            for x, saved in zip(
                (model, optimizer, scheduler, scaler), torch.load(buffer, weights_only=True), strict=True
            ):
                x.load_state_dict(saved)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            loss = nn.functional.cross_entropy(model(data[t % 3][0]), data[t % 3][1])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("space", spaces.SPACES)
@pytest.mark.parametrize("penalty", [R.L1(0.05), R.L2(0.1), R.GroupL1(0.05), R.MCP(0.05)], ids=repr)
def test_a_resumed_run_is_bit_equal(penalty, space):
    whole = sparse_run(40, penalty=penalty, space=space)
    assert same(whole, sparse_run(40, resume_at=17, penalty=penalty, space=space))
    assert not same(whole, sparse_run(40, penalty=R.L1(0.0)))


@pytest.mark.parametrize("form", FORMS)
def test_with_mixed_precision_a_resumed_run_is_bit_equal(form):
    whole = sparse_run(40, form=form, amp=True)
    assert same(whole, sparse_run(40, form=form, amp=True, resume_at=17))
    assert sum(int((p == 0).sum()) for p in whole) > 10


def test_a_run_with_scheduler_and_clipping_ends_with_zeros():
    zeros = sum(int((p == 0).sum()) for p in sparse_run(60))
    assert zeros > 20
    assert sum(int((p == 0).sum()) for p in sparse_run(60, penalty=R.L1(0.0))) == 0


COPIES = {
    "deepcopy": copy.deepcopy,
    "a copy of a copy": lambda both: copy.deepcopy(copy.deepcopy(both)),
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
    "pickle, protocol 2": lambda both: pickle.loads(pickle.dumps(both, protocol=2)),
    "a pickle of a copy of a pickle": lambda both: pickle.loads(
        pickle.dumps(copy.deepcopy(pickle.loads(pickle.dumps(both))))
    ),
    "torch.save": lambda both: _saved(both),
}


def _saved(both):
    buffer = io.BytesIO()
    torch.save(both, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("explicit", [False, True])
def test_the_regularization_survives_copies(how, explicit):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    names = {"params": ["0.weight"], "model": model} if explicit else {}
    handle = wc.regularize(optimizer, R.L1(0.05), **names)
    wc.regularize(optimizer, R.L2(0.01), space="original", params="all")
    train(model, optimizer, 5)
    other_model, other = COPIES[how]((model, optimizer))
    (found,) = [r for r in wc.regularizations_of(other) if isinstance(r.penalty, R.L1)]
    assert len(wc.regularizations_of(other)) == 2
    assert found is not handle
    assert {id(p) for p in found.parameters()} <= {id(p) for p in other_model.parameters()}
    assert found.names() == handle.names()
    expected = train(model, optimizer, 10)
    assert same(expected, train(other_model, other, 10))
    assert any((p == 0).any() for p in expected)
    found.strength = 0.5  # and is the copy's own
    assert handle.strength == 0.05
    train(other_model, other, 10)
    assert found.sparsity().zeros > handle.sparsity().zeros
    found.remove()
    assert len(wc.regularizations_of(optimizer)) == 2


def test_a_copy_of_the_optimizer_alone_steps_its_own_parameters():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    wc.regularize(optimizer, R.L1(10.0))
    train(model, optimizer, 2)
    other, before = copy.deepcopy(optimizer), [p.detach().clone() for p in model.parameters()]
    for p in other.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    other.step()
    assert same(before, [p.detach() for p in model.parameters()])
    assert all((p == 0).all() for p in other.param_groups[0]["params"] if p.dim() > 1)


def test_hooks_of_other_people_go_on():
    calls = []
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.register_step_post_hook(lambda *_: calls.append("theirs"))
    handle = wc.regularize(optimizer, R.L1(0.1))
    train(model, optimizer, 2)
    handle.remove()
    train(model, optimizer, 1)
    assert calls == ["theirs"] * 3
    assert wc.regularizations_of(optimizer) == []
    assert "__getstate__" not in vars(optimizer)


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize(
    ("space", "penalty"), [("intrinsic", R.L2(0.1)), ("original", R.L2(0.1)), ("intrinsic", R.L1(0.1))]
)
def test_a_closure_evaluates_the_gradient_inside_the_step(space, penalty, by_keyword):
    plain, closed = network(), network()
    data = batches()
    results = []
    for model, with_closure in ((plain, False), (closed, True)):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        wc.regularize(optimizer, penalty, space=space)
        for t in range(10):

            def closure(model=model, optimizer=optimizer, t=t):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(data[t % 3][0]), data[t % 3][1])
                loss.backward()
                return loss

            if with_closure:
                loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
                assert loss.item() > 0
            else:
                closure()
                optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    assert same(*results)


def test_lbfgs_with_line_search_minimizes_the_sum():
    torch.manual_seed(0)
    w = nn.Parameter(torch.zeros(1, 10, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(
        [w], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-20, line_search_fn="strong_wolfe"
    )
    wc.regularize(optimizer, R.L2(0.5), space="original")

    def closure():
        w.grad = w.detach() @ GRAM - MOMENT
        return 0.5 * (w.detach() @ GRAM @ w.detach().T).squeeze() - (w.detach() @ MOMENT).squeeze()

    optimizer.step(closure)
    ridge = torch.linalg.solve(GRAM + 0.5 * torch.eye(10, dtype=torch.float64), MOMENT)
    # The line search compares losses: it sees no better than the root of their rounding.
    assert torch.allclose(w.detach()[0], ridge, rtol=0, atol=1e-7)
    assert float((ridge - torch.linalg.solve(GRAM, MOMENT)).abs().max()) > 0.01


def amp_run(penalty, space, overflow_at, form, poison=True):
    """Mixed precision with a scaler; the loss overflows at some steps."""
    model = network(torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, **FORMS[form])
    if penalty is not None:
        wc.regularize(optimizer, penalty, space=space)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    data = batches(torch.float32)
    for t in range(12):
        if t in overflow_at and not poison:
            continue
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(data[t % 3][0]), data[t % 3][1])
        scaler.scale(loss * (math.inf if t in overflow_at else 1)).backward()
        before = [p.detach().clone() for p in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        if t in overflow_at:
            assert same(before, [p.detach() for p in model.parameters()])
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("overflow_at", [(), (0,), (0, 1, 5)])
@pytest.mark.parametrize(
    ("penalty", "space"),
    [
        (R.L1(0.05), "intrinsic"),
        (R.L2(0.1), "intrinsic"),
        (R.L2(0.1), "original"),
        (R.GroupL1(0.02), "intrinsic"),
        (R.Power(0.05, q=1.5), "intrinsic"),
        (R.L1(0.05), "euclidean"),
    ],
    ids=str,
)
def test_a_gradient_scaler_and_its_skipped_steps(penalty, space, overflow_at, form):
    with_skips = amp_run(penalty, space, overflow_at, form)
    assert all(p.isfinite().all() for p in with_skips)
    # The same steps without those that were skipped, and with the optimizer that is not told of the scaler. Scales are
    # powers of two, so that unscaling is exact; fused and single-tensor Adam differ by rounding.
    without = amp_run(penalty, space, overflow_at, "single tensor", poison=False)
    for p, q in zip(with_skips, without, strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=2e-5)
    plain = amp_run(None, space, overflow_at, form)
    assert not all(torch.allclose(p, q, rtol=1e-3, atol=1e-3) for p, q in zip(plain, with_skips, strict=True))


def test_load_state_dict_replaces_the_groups_and_nothing_is_lost():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    wc.regularize(optimizer, R.L1(0.05))
    train(model, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    assert not any(
        "L1" in str(value) or "penalty" in str(key) for g in saved["param_groups"] for key, value in g.items()
    )
    saved["param_groups"][0]["lr"] = 0.0
    optimizer.load_state_dict(saved)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 1)
    assert same(before, [p.detach() for p in model.parameters()])  # the loaded rate of 0 holds for the penalty too
    optimizer.param_groups[0]["lr"] = 0.02
    assert any((p == 0).any() for p in train(model, optimizer, 10))


@pytest.mark.parametrize(("space", "via"), [(s, v) for s in spaces.SPACES for v in ("prox", "gradient")])
def test_a_parameter_without_gradient_is_left_alone(space, via):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    wc.regularize(optimizer, R.L1(0.05), space=space, via=via)
    train(model, optimizer, 2)
    model[0].weight.requires_grad_(False)
    before = model[0].weight.detach().clone()
    after = model[2].weight.detach().clone()
    train(model, optimizer, 2)
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[2].weight, after)


def test_after_a_gradient_penalty_grad_holds_the_sum():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    wc.regularize(optimizer, R.L2(0.5), space="original", params="all")
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    g, p = model[0].weight.grad.clone(), model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight.grad, g + 0.5 * p)


def test_groups_added_later():
    first, second = network(), network()
    optimizer = torch.optim.Adam(first.parameters(), lr=0.02)
    by_default = wc.regularize(optimizer, R.L1(0.05))
    explicit = wc.regularize(optimizer, R.L2(0.01), space="original", params=list(first.parameters()))
    of_predicate = wc.regularize(optimizer, R.NonNegative(), params=lambda p: tuple(p.shape) == (3,), space="euclidean")
    optimizer.add_param_group({"params": second.parameters(), "lr": 0.1})
    assert [len(h.parameters()) for h in (by_default, explicit, of_predicate)] == [4, 4, 2]
    assert "parameter 0 of group 1" in by_default.names()
    for model in (first, second):
        nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    optimizer.step()
    assert (second[2].bias >= 0).all()


def test_sparse_gradients_are_shrunk_on_their_rows_only():
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=True, dtype=torch.float64)
    for space in spaces.SPACES:
        optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.01)
        plain = copy.deepcopy(table)
        twin = torch.optim.SparseAdam(plain.parameters(), lr=0.01)
        wc.regularize(optimizer, R.L1(0.5), space=space)
        before = table.weight.detach().clone()
        for net, opt in ((table, optimizer), (plain, twin)):
            opt.zero_grad()
            net(torch.tensor([1, 4, 4])).square().sum().backward()
            opt.step()
        scale = wc.preconditioner_of(twin).scales[0]
        expected = spaces.prox(R.L1(0.5), space, plain.weight.detach(), 0.01, scale**2)
        assert torch.equal(table.weight[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
        assert torch.allclose(table.weight[[1, 4]], expected[[1, 4]], rtol=1e-12)
    group = torch.optim.SparseAdam(table.parameters())
    wc.regularize(group, R.GroupL1(0.5, dim=1))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse gradient"):
        group.step()


# -- precision and memory --


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("space", spaces.SPACES)
def test_thresholds_of_low_precision_parameters_are_computed_in_float32(dtype, space):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(64, 32).to(dtype))
    optimizer = torch.optim.RMSprop([p], lr=0.05)
    handle = wc.regularize(optimizer, R.L1(0.7), space=space)
    twin = nn.Parameter(p.detach().clone())
    plain = torch.optim.RMSprop([twin], lr=0.05)
    p.grad = torch.randn_like(p)
    twin.grad = p.grad.clone()
    optimizer.step()
    plain.step()
    v = plain.state[twin]["square_avg"].float()
    squared = 1 / (v.sqrt() + 1e-8)
    expected = spaces.prox(R.L1(0.7), space, twin.detach().float(), 0.05, squared).to(dtype)
    assert p.dtype == dtype
    assert (p != expected).sum() <= 2  # a rounding to 8 bits may fall on the other side
    assert handle.sparsity().zeros > 0


def test_no_temporary_is_larger_than_a_parameter():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else [out]:
                if isinstance(t, torch.Tensor):
                    self.entries = max(self.entries, t.numel())
                    assert t.device.type == "meta" or t.device.type == "cpu"
            return out

    p = [nn.Parameter(torch.randn(300, 1000)), nn.Parameter(torch.randn(200, 1000))]
    for penalty in (R.L1(0.1), R.GroupL1(0.1), R.L2(0.1)):
        for space in spaces.SPACES:
            optimizer = torch.optim.Adam(p, foreach=False)
            handle = wc.regularize(optimizer, penalty, space=space)
            for q in p:
                q.grad = torch.randn_like(q)
            with Largest() as largest:
                optimizer.step()
            assert 0 < largest.entries <= 300_000
            handle.remove()


ON_A_DEVICE = {
    name: getattr(torch.optim, name)
    for name in ("SGD", "ASGD", "Adagrad", "Adadelta", "RMSprop", "Adam", "AdamW", "NAdam", "RAdam", "Adamax")
}


@pytest.mark.parametrize("space", spaces.SPACES)
@pytest.mark.parametrize("optimizer_name", ON_A_DEVICE)
def test_nothing_in_a_step_waits_for_the_device(optimizer_name, space):
    """On the meta device tensors have no values: whatever reads one, or copies one to the host, raises."""

    def away(t):
        return t.to("meta") if isinstance(t, torch.Tensor) else t

    with pytest.raises((RuntimeError, NotImplementedError)):
        float(away(torch.ones(())))
    with pytest.raises(NotImplementedError):
        away(torch.ones(2)).cpu()
    original = ones(4, 4, dtype=torch.float32)
    original.grad = torch.ones_like(original)
    build = ON_A_DEVICE[optimizer_name]
    options = {"lr": torch.tensor(0.1)} if optimizer_name in ("SGD", "Adam", "AdamW") else {"lr": 0.1}
    twin = build([original], foreach=False, **options)
    twin.step()
    for name, penalty in (PENALTIES | {"Power": R.Power(0.1, q=1.5)}).items():
        for via in ("prox", "gradient"):
            p = nn.Parameter(away(original.detach()))
            optimizer = build([p], foreach=False, **options)
            try:
                wc.regularize(optimizer, penalty, space=space, via=via)
            except (TypeError, ValueError):
                continue  # no such proximal step or gradient: tested elsewhere
            for group in optimizer.param_groups:
                group["lr"] = away(group["lr"])
            p.grad = away(original.grad)
            optimizer.state[p] = {key: away(value) for key, value in twin.state[original].items()}
            optimizer.found_inf = optimizer.grad_scale = away(torch.ones(()))
            attachment = attachment_of(optimizer)
            attachment.before(optimizer, (optimizer,), {})
            attachment.after(optimizer, (optimizer,), {})
            assert p.device.type == "meta", name


@pytest.mark.parametrize("build", [wc.optim.SGD, wc.optim.Adagrad, wc.optim.RMSprop, wc.optim.Adam, wc.optim.AdamW])
def test_nothing_in_a_step_of_one_pass_waits_for_the_device(build):
    for penalty in (R.L1(0.1), R.L2(0.1), R.MCP(0.1), R.Box(0, 1), R.GroupL1(0.1)):
        p, q = nn.Parameter(torch.empty(4, 4, device="meta")), nn.Parameter(torch.empty(4, device="meta"))
        optimizer = build([p, q], lr=0.1, penalty=penalty)
        for _ in range(3):
            for x in (p, q):
                x.grad = torch.empty_like(x)
                if "step" in optimizer.state[x] and penalty.key:  # torch's own step, of two passes, reads its count
                    optimizer.state[x]["step"] = optimizer.state[x]["step"].to("meta")
            optimizer.step()
        assert p.device.type == "meta"


def test_compiled_and_eager_agree_to_rounding():
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 40), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
        extra = [
            nn.Parameter(torch.randn(*shape)) for shape in [(1, 1), (0, 3), (5, 7), (2, 2), (90, 3), (4, 1), (6, 6)]
        ]
        parameters = [*model.parameters(), *extra]
        optimizer = torch.optim.Adam(parameters, lr=0.02)
        wc.regularize(optimizer, R.L1(0.3), compile=compiled)
        generator = torch.Generator().manual_seed(3)
        for _ in range(8):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        results.append([p.detach() for p in parameters])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert sum(int((p == 0).sum()) for p in results[1]) > 50


def test_without_a_compiler_the_same_formulas_run_eagerly(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler found\nat all")

    monkeypatch.setattr(torch, "compile", broken)
    p = nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.SGD([p], lr=0.1)
    wc.regularize(optimizer, R.SCAD(20.0, a=2.5 + 1e-9), compile=True)
    p.grad = torch.zeros_like(p)
    with pytest.warns(UserWarning, match="no C"):
        optimizer.step()
    assert (p == 0).all()
