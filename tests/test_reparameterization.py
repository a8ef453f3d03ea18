"""An optimizer in z against the same optimizer built over z; and a given preconditioner on the gradient."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import wellcond as wc
from tests.regularized import FORMS, batches, network, same, train
from wellcond import one_pass
from wellcond import penalties as R  # noqa: N812
from wellcond.parameters import flatten
from wellcond.preconditioners import Preconditioner
from wellcond.preconditioners.preconditioner import Composed
from wellcond.steps import change_of_variables

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "heavy ball": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.2),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1, lambd=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.01),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.02),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.02),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.02),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.02, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.02, fused=True),
    "capturable": lambda p: torch.optim.NAdam(p, lr=0.02, foreach=False),
    "ours": lambda p: wc.optim.AdamW(p, lr=0.02, compile=False),
    "ours with a penalty": lambda p: wc.optim.Adam(p, lr=0.02, penalty=R.L1(0.02), compile=False),
}
LINEAR = ("SGD", "heavy ball", "Nesterov", "ASGD")


def diagonal(model):
    generator = torch.Generator().manual_seed(8)
    p = list(model.parameters())
    scales = [torch.rand(x.shape, generator=generator, dtype=torch.float64) * 2 + 0.2 for x in p[:-1]]
    return wc.DiagonalPreconditioner(p, [*scales, torch.tensor(1.7, dtype=torch.float64)])


def standardizing(model):
    P = wc.BatchNormPreconditioner(model, momentum=0.5)
    for x, _ in batches(next(model.parameters()).dtype):
        model(x * 2 + 1)
    P.remove()
    return P


GIVEN = {
    "diagonal": diagonal,
    "batch norm": standardizing,
    "composed": lambda model: standardizing(model) @ diagonal(model),
}


def in_p(build, given, steps=50, attach=(), **options):
    """The model's parameters under a reparameterized optimizer."""
    model = network()
    P = given(model)
    optimizer = build(list(model.parameters()))
    for each in attach or (lambda o: wc.reparameterize(o, P),):
        each(optimizer) if not attach else each(optimizer, P)
    return train(model, optimizer, steps, **options)


def in_z(build, given, steps=50, attach=None, regularizations=()):
    """P times the parameters z of the same optimizer on z ↦ L(Pz), written out."""
    model = network()
    P = given(model)
    names = [name for name, _ in model.named_parameters()]
    z = [nn.Parameter(x) for x in P.invert([p.detach() for p in model.parameters()])]
    optimizer = build(z)
    for each in regularizations:
        each(optimizer)
    data = batches()
    for t in range(steps):
        optimizer.zero_grad()
        out = torch.func.functional_call(model, dict(zip(names, P.apply(z), strict=True)), data[t % 3][0])
        nn.functional.cross_entropy(out, data[t % 3][1]).backward()
        optimizer.step()
    return P.apply([x.detach() for x in z])


def difference(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_trajectory_is_that_of_the_same_optimizer_over_z(name, given):
    ours = in_p(OPTIMIZERS[name], GIVEN[given])
    assert difference(ours, in_z(OPTIMIZERS[name], GIVEN[given])) < 1e-10
    plain = in_p(OPTIMIZERS[name], lambda m: wc.DiagonalPreconditioner(list(m.parameters()), [torch.ones(())] * 4))
    assert difference(ours, plain) > 1e-3


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_preconditioning_agrees_for_linear_optimizers(name, given):
    def preconditioned(o, P):
        wc.precondition(o, P)

    def reparameterized(o, P):
        wc.reparameterize(o, P)

    def build(p):
        optimizer = OPTIMIZERS[name](p)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        return optimizer

    gap = difference(*(in_p(build, GIVEN[given], attach=(a,)) for a in (preconditioned, reparameterized)))
    assert gap < 1e-12 if name in LINEAR else gap > 1e-6


def test_preconditioning_multiplies_the_gradient_and_gives_it_back():
    model = network()
    P = standardizing(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = wc.precondition(optimizer, P)
    nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    before, g = [p.detach().clone() for p in model.parameters()], [p.grad.clone() for p in model.parameters()]
    step = [0.1 * x for x in P.gram(g)]
    for _ in range(2):  # a second step without a new gradient preconditions the same one
        optimizer.step()
        assert same(g, [p.grad for p in model.parameters()])
    assert difference([p - 2 * d for p, d in zip(before, step, strict=True)], [*model.parameters()]) < 1e-15
    handle.remove()
    assert not vars(optimizer).keys() & {"wellcond"}


def test_a_parameter_that_does_not_move_does_not_drift():
    torch.manual_seed(0)
    p = [nn.Parameter(torch.randn(50) * 10.0**k) for k in range(-3, 4)] + [nn.Parameter(-torch.zeros(3))]
    scales = [torch.rand(50) * 3 + 0.01 for _ in range(7)] + [torch.tensor(0.3)]
    optimizer = torch.optim.SGD(p, lr=0.1)
    wc.reparameterize(optimizer, wc.DiagonalPreconditioner(p, scales))
    before = [x.detach().clone() for x in p]
    for i, x in enumerate(p):
        x.grad = torch.zeros_like(x) if i % 2 else None
    for _ in range(10_000):
        optimizer.step()
    assert all(torch.equal(a.view(torch.int32), b.detach().view(torch.int32)) for a, b in zip(before, p, strict=True))
    x, s = before[1], scales[1]
    for _ in range(10_000):
        x = (x / s) * s
    assert not torch.equal(x, before[1])  # as carrying p through P⁻¹ and P does


def test_a_layer_that_does_not_move_does_not_drift():
    model = network(torch.float32)
    P = standardizing(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wc.reparameterize(optimizer, P)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(10_000):
        optimizer.step()
    assert same(before, [p.detach() for p in model.parameters()])


# -- penalties: all in z, in whichever order they are attached --

PENALTIES = {
    "L1 intrinsic": lambda o: wc.regularize(o, R.L1(0.05)),
    "L1 original": lambda o: wc.regularize(o, R.L1(0.01), space="original"),
    "L2 original by gradient": lambda o: wc.regularize(o, R.L2(0.3), space="original", params="all"),
    "L2 intrinsic": lambda o: wc.regularize(o, R.L2(0.3), params="all"),
    "groups": lambda o: wc.regularize(o, R.GroupL1(2.0), space="euclidean"),
    "two": lambda o: (wc.regularize(o, R.L1(0.05)), wc.regularize(o, R.L2(0.1), space="original")),
}
ADAPTIVE = {
    **{name: OPTIMIZERS[name] for name in ("Adam", "heavy ball", "Adadelta", "fused")},
    "ours": lambda p: wc.optim.Adam(p, lr=0.02, penalty=R.NonNegative(), compile=False),
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize(
    ("name", "penalty"),
    # its own projection takes no other proximal step beside it
    [(n, p) for n in ADAPTIVE for p in PENALTIES if n != "ours" or p == "L2 original by gradient"],
)
def test_penalties_are_on_z_in_either_order(name, penalty, given):
    add = PENALTIES[penalty]
    first = in_p(ADAPTIVE[name], GIVEN[given], attach=(lambda o, P: add(o), lambda o, P: wc.reparameterize(o, P)))
    last = in_p(ADAPTIVE[name], GIVEN[given], attach=(lambda o, P: wc.reparameterize(o, P), lambda o, P: add(o)))
    assert same(first, last)
    expected = in_z(ADAPTIVE[name], GIVEN[given], regularizations=(add,))
    assert difference(first, expected) < 1e-10
    if given == "diagonal" and ("L1" in penalty or penalty == "groups"):
        zeros = [p == 0 for p in first]
        assert same(zeros, [p == 0 for p in expected])
        assert sum(int(x.sum()) for x in zeros) > 5


def test_the_penalty_of_a_preconditioned_gradient_is_on_p_in_either_order():
    def build(p):
        return torch.optim.SGD(p, lr=0.1)

    def add(o, P):
        wc.regularize(o, R.L2(0.3), space="original", params="all")

    def given(o, P):
        wc.precondition(o, P)

    first, last = (in_p(build, standardizing, attach=order) for order in ((add, given), (given, add)))
    assert same(first, last)
    model = network()
    P = standardizing(model)
    data = batches()
    for t in range(50):  # p ← p − αPPᵀ(g + τp)
        model.zero_grad()
        nn.functional.cross_entropy(model(data[t % 3][0]), data[t % 3][1]).backward()
        moves = P.gram([p.grad + 0.3 * p.detach() for p in model.parameters()])
        with torch.no_grad():
            for p, d in zip(model.parameters(), moves, strict=True):
                p -= 0.1 * d
    assert difference(first, list(model.parameters())) < 1e-12


@pytest.mark.parametrize("given", GIVEN)
def test_handles_of_penalties_know_of_z(given):
    model = network()
    P = GIVEN[given](model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    handle = wc.reparameterize(optimizer, P)
    l1 = wc.regularize(optimizer, R.L1(0.05))
    train(model, optimizer, 5)
    z = handle.z()
    twin = torch.optim.Adam([nn.Parameter(x) for x in z])
    twin.load_state_dict(optimizer.state_dict())
    other = wc.regularize(twin, R.L1(0.05))
    assert torch.allclose(l1.value(), other.value(), rtol=1e-12)
    before = [p.detach().clone() for p in model.parameters()]
    problem = wc.Problem(model, nn.CrossEntropyLoss(), batches()[0])
    names = [name for name, _ in model.named_parameters()]
    in_z = nn.ParameterList(twin.param_groups[0]["params"])

    def loss(module, batch):
        p = dict(zip(names, P.apply(list(module)), strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(model, p, batch[0]), batch[1])

    expected = other.optimality(wc.Problem(in_z, loss=loss, data=batches()[:1]))
    assert l1.optimality(problem) == pytest.approx(expected, rel=1e-10)
    assert same(before, [p.detach() for p in model.parameters()])
    handle.remove()
    wc.precondition(optimizer, P)
    with pytest.raises(ValueError, match="use reparameterize, whose optimality"):
        l1.optimality(problem)


# -- what the whole change of variables is --


def dense(P, like):
    rows = torch.eye(sum(p.numel() for p in like), dtype=torch.float64)
    split = [x.split([p.numel() for p in like]) for x in rows]
    return torch.stack([flatten(P.apply([v.view(p.shape) for v, p in zip(x, like, strict=True)])) for x in split], 1)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", ["Adam", "Adadelta", "SGD"])
def test_the_preconditioner_of_the_whole(name, given):
    model = network()
    P, parameters = GIVEN[given](model), list(model.parameters())
    optimizer = OPTIMIZERS[name](parameters)
    handle = wc.reparameterize(optimizer, P)
    train(model, optimizer, 3)
    twin = OPTIMIZERS[name]([nn.Parameter(x) for x in handle.z()])
    twin.load_state_dict(optimizer.state_dict())
    adjoint = P.adjoint([p.grad for p in parameters])
    for z, g in zip(twin.param_groups[0]["params"], adjoint, strict=True):
        z.grad = g
    own = wc.preconditioner_of(twin)
    whole = wc.preconditioner_of(optimizer)
    expected = dense(P, parameters) @ dense(own, parameters)
    assert torch.allclose(dense(whole, parameters), expected, rtol=1e-9)
    assert isinstance(whole, wc.DiagonalPreconditioner) == (given == "diagonal")
    problem = wc.Problem(model, nn.CrossEntropyLoss(), batches()[0])
    H = wc.Hessian(problem).dense()
    decay = OPTIMIZERS[name]([nn.Parameter(torch.ones(1))]).param_groups[0].get("weight_decay", 0.0)
    step = expected.T @ H @ expected + decay * dense(own, parameters).T @ dense(own, parameters)
    edge = wc.edge_ratio(problem, optimizer, max_products=200)
    rate = optimizer.param_groups[0]["lr"] * (1 / (1 - 0.9**3) if name == "Adam" else 1.0)
    assert edge.ratio.value == pytest.approx(rate * float(torch.linalg.eigvalsh(step)[-1]) / edge.bound, rel=1e-4)


def test_the_preconditioner_of_a_preconditioned_step():
    model = network()
    P = standardizing(model)
    sgd, adam = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.Adam(model.parameters())
    wc.precondition(sgd, P)
    parameters = list(model.parameters())
    assert torch.allclose(dense(wc.preconditioner_of(sgd), parameters), dense(P, parameters))
    wc.precondition(adam, P)
    train(model, adam, 1)
    with pytest.raises(ValueError, match="don't commute"):
        wc.preconditioner_of(adam)


def test_products_compose():
    model = network()
    P, D = standardizing(model), diagonal(model)
    parameters = list(model.parameters())
    for first, second in ((P, D), (D, P), (P, P), (D, D)):
        product = first @ second
        expected = dense(first, parameters) @ dense(second, parameters)
        assert torch.allclose(dense(product, parameters), expected, rtol=1e-12)
        x = [torch.randn_like(p) for p in parameters]
        back = product.apply(product.invert(x))
        assert difference(x, back) < 1e-12
        gram = flatten(product.gram(x))
        assert torch.allclose(gram, expected @ expected.T @ flatten(x), rtol=1e-10)
        swapped = product.over(parameters[::-1], "dcba")
        assert difference(swapped.apply(x[::-1])[::-1], product.apply(x)) == 0
    half = Composed(
        wc.DiagonalPreconditioner(parameters[:1], [torch.tensor(2.0)]),
        wc.DiagonalPreconditioner(parameters[2:3], [torch.tensor(3.0)]),
    )
    assert [float(y.flatten()[0]) for y in half.apply([torch.ones(1), torch.ones(1)])] == [2.0, 3.0]
    with pytest.raises(ValueError, match="neither of the composed preconditioners covers b"):
        half.over(parameters[:2], "ab")


# -- traps of hooks --


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("amp", [False, True])
def test_a_resumed_run_is_bit_equal(given, form, amp):
    def fresh():
        model = network(torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, **FORMS[form])
        wc.reparameterize(optimizer, GIVEN[given](model))
        wc.regularize(optimizer, R.L1(0.01))
        return model, optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=amp)

    def run(resume_at=None, steps=24):
        everything = fresh()
        for t in range(steps):
            if t == resume_at:
                buffer = io.BytesIO()
                torch.save([x.state_dict() for x in everything], buffer)
                buffer.seek(0)
                everything = fresh()
                for x, saved in zip(everything, torch.load(buffer, weights_only=True), strict=True):
                    x.load_state_dict(saved)
            model, optimizer, scaler = everything
            x, y = batches(torch.float32)[t % 3]
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            if t == 5:
                model[0].weight.grad[0, 0] = float("inf" if amp else 1)
            scaler.step(optimizer)
            scaler.update()
        return [p.detach() for p in everything[0].parameters()]

    whole = run()
    assert all(p.isfinite().all() for p in whole)
    assert same(whole, run(resume_at=11))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attach", [wc.precondition, wc.reparameterize])
def test_a_scaled_loss_changes_nothing(attach, form):
    results = []
    for enabled in (False, True):
        model = network(torch.float32)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02, **FORMS[form])
        attach(optimizer, standardizing(model))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        for t in range(10):
            optimizer.zero_grad()
            x, y = batches(torch.float32)[t % 3]
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach() for p in model.parameters()])
    assert difference(*results) < 1e-5


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attach", [wc.precondition, wc.reparameterize])
def test_a_step_that_a_scaler_skips_moves_nothing(attach, form, kind):
    """Where the optimizer is fused it is its own kernel that skips, and its step runs all the same."""
    model = network(torch.float32)
    optimizer = kind(model.parameters(), lr=0.02, weight_decay=0.1, **FORMS[form])
    attach(optimizer, standardizing(model))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for overflows in (False, True, False):
        optimizer.zero_grad()
        x, y = batches(torch.float32)[0]
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        before = [p.detach().clone() for p in model.parameters()]
        if overflows:
            next(model.parameters()).grad.view(-1)[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert all(map(torch.equal, model.parameters(), before)) == overflows


COPIES = {
    "deepcopy": copy.deepcopy,
    "a copy of a copy": lambda both: copy.deepcopy(copy.deepcopy(both)),
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("attach", [wc.precondition, wc.reparameterize])
def test_it_survives_copies(attach, how):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    attach(optimizer, wc.BatchNormPreconditioner(model))  # one that moves
    train(model, optimizer, 3)
    other_model, other = COPIES[how]((model, optimizer))
    expected = train(model, optimizer, 5)
    assert same(expected, train(other_model, other, 5))
    alone = copy.deepcopy(optimizer)
    for p in alone.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    alone.step()
    assert same(before, [p.detach() for p in model.parameters()])


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("given", GIVEN)
def test_lbfgs_evaluates_its_closure_at_p(given, penalty, search):
    def build(p):
        optimizer = torch.optim.LBFGS(p, lr=0.5, max_iter=6, line_search_fn=search)
        if penalty:
            wc.regularize(optimizer, R.L2(0.1), space="original", params="all")
        return optimizer

    model = network()
    P = GIVEN[given](model)
    names = [name for name, _ in model.named_parameters()]
    z = [nn.Parameter(x) for x in P.invert([p.detach() for p in model.parameters()])]
    explicit, x, y = build(z), *batches()[0]
    twin = copy.deepcopy(model)
    optimizer = build(list(model.parameters()))
    wc.reparameterize(optimizer, P)

    def loss_in_z():
        explicit.zero_grad()
        p = dict(zip(names, P.apply(z), strict=True))
        loss = nn.functional.cross_entropy(torch.func.functional_call(twin, p, x), y)
        loss.backward()
        return loss

    def loss_in_p():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(4):
        expected, ours = explicit.step(loss_in_z), optimizer.step(loss_in_p)
        assert float(ours) == pytest.approx(float(expected), rel=1e-9)
    assert difference(P.apply([a.detach() for a in z]), list(model.parameters())) < 1e-8


@pytest.mark.parametrize("attach", [wc.precondition, wc.reparameterize])
def test_a_closure_that_is_called_once_makes_the_same_step(attach):
    results = []
    for as_closure in (False, True):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        attach(optimizer, standardizing(model))

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()

        for _ in range(5):
            if as_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    assert same(*results)


class Ahead(torch.optim.SGD):
    """Looks ahead: moves before it evaluates."""

    @torch.no_grad()
    def step(self, closure):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(0.1)
        with torch.enable_grad():
            return closure()


def test_an_optimizer_that_moves_before_its_closure_is_refused():
    model = network()
    optimizer = Ahead(model.parameters(), lr=0.1)
    wc.reparameterize(optimizer, diagonal(model))
    with pytest.raises(RuntimeError, match="Ahead moves its parameters before"):
        optimizer.step(lambda: None)


class Failing(torch.optim.SGD):
    def step(self, closure=None):
        raise KeyboardInterrupt


def test_after_a_step_that_failed_parameters_and_gradients_are_put_back():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wc.reparameterize(optimizer, standardizing(model))
    wc.regularize(optimizer, R.L1(0.1), check_finite=True)
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert same(before, [p.detach() for p in model.parameters()])
    failing = Failing(model.parameters(), lr=0.1)
    handle = wc.reparameterize(failing, diagonal(model))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(2):  # the second step begins with what the first one left
        with pytest.raises(KeyboardInterrupt):
            failing.step()
    handle.remove()
    assert same(before, [p.detach() for p in model.parameters()])


def test_p_stays_where_it_is_in_memory():
    model = network()
    views = [p.detach() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    wc.reparameterize(optimizer, standardizing(model))
    after = train(model, optimizer, 2)
    assert same(after, views)
    assert all(p.data_ptr() == v.data_ptr() for p, v in zip(model.parameters(), views, strict=True))


@pytest.mark.parametrize("given", [diagonal, standardizing])
def test_parameters_that_are_not_covered_or_have_no_gradient_are_left_to_the_optimizer(given):
    first, second = network(), network()
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9)
    P = given(first)
    handle = wc.reparameterize(optimizer, P)
    optimizer.add_param_group({"params": second.parameters()})
    plain = network()
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), 3)
    train(second, optimizer, 3)
    assert same([p.detach() for p in plain.parameters()], [p.detach() for p in second.parameters()])
    assert same([p.detach() for p in network().parameters()], [p.detach() for p in first.parameters()])
    assert "on 4 of 8 parameters" in repr(handle)
    first[0].bias.requires_grad_(False)  # and P is then that of the others
    before = first[0].bias.detach().clone()
    part = P.over([first[0].weight], ["0.weight"])
    w = first[0].weight.detach().clone()
    optimizer.zero_grad()
    nn.functional.cross_entropy(first(batches()[0][0]), batches()[0][1]).backward()
    (step,) = part.gram([first[0].weight.grad])
    optimizer.step()
    assert torch.equal(before, first[0].bias)
    assert torch.allclose(w - 0.1 * step, first[0].weight, rtol=1e-12)


def test_groups_added_later_are_covered_where_P_has_them():
    first, second = network(), network()
    both = nn.ModuleList([first, second])
    D = wc.DiagonalPreconditioner(list(both.parameters()), [torch.tensor(2.0)] * 8)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    wc.reparameterize(optimizer, D)
    train(first, optimizer, 1)
    optimizer.add_param_group({"params": second.parameters(), "lr": 0.2})
    before = [p.detach().clone() for p in second.parameters()]
    train(second, optimizer, 1)
    expected = [p - 0.2 * 4 * q.grad for p, q in zip(before, second.parameters(), strict=True)]
    assert difference(expected, list(second.parameters())) < 1e-14


@pytest.mark.parametrize("attach", [wc.precondition, wc.reparameterize])
def test_sparse_gradients_go_with_a_diagonal(attach):
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=True, dtype=torch.float64)
    scales = torch.rand(6, 3, dtype=torch.float64) + 0.5
    twin = copy.deepcopy(table)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.01)
    attach(optimizer, wc.DiagonalPreconditioner([table.weight], [scales]))
    over_z = nn.Parameter(table.weight.detach() / scales)
    explicit = torch.optim.SparseAdam([over_z if attach is wc.reparameterize else twin.weight], lr=0.01)
    before = table.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        table(torch.tensor([1, 4, 4])).square().sum().backward()
        rows = torch.tensor([1, 4])
        g = table.weight.grad.coalesce().values() * scales[rows] ** (1 if attach is wc.reparameterize else 2)
        explicit.param_groups[0]["params"][0].grad = torch.sparse_coo_tensor(rows[None], g, (6, 3))
        optimizer.step()
        explicit.step()
    expected = over_z.detach() * scales if attach is wc.reparameterize else twin.weight
    assert difference([expected], [table.weight]) < 1e-12
    assert torch.equal(before[[0, 2, 3, 5]], table.weight[[0, 2, 3, 5]])
    attach(mixed := torch.optim.SGD(table.parameters(), lr=0.1), Twice([table.weight]))
    with pytest.raises(ValueError, match="parameter 0 of group 0 has a sparse gradient"):
        mixed.step()


class Twice(Preconditioner):
    """P = 2, of a user's own, in the least that a preconditioner needs."""

    def __init__(self, parameters, factor=2.0):
        self.parameters, self.factor = list(parameters), factor

    def apply(self, z):
        return [self.factor * x for x in z]

    adjoint = apply

    def invert(self, p):
        return [x / self.factor for x in p]

    def over(self, parameters, names, dtype=None):
        return Twice(parameters, self.factor)


class Shapeless(Twice):
    def apply(self, z):
        return [x.sum() for x in z]

    def over(self, parameters, names, dtype=None):
        return Shapeless(parameters)


class Coarse(Twice):
    def apply(self, z):
        return [x.float() for x in z]

    def over(self, parameters, names, dtype=None):
        return Coarse(parameters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    torch.manual_seed(0)
    model = network().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wc.reparameterize(optimizer, diagonal(model))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    for p, x, s in zip(model.parameters(), before, diagonal(model).scales, strict=True):
        assert p.dtype == dtype
        expected = x.double() - 0.1 * s.square() * p.grad.double()
        assert torch.allclose(p.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps * 5)


def test_layouts_of_convolutions_are_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2)).double()
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = torch.randn(5, 3, 5, 5).double()
    results = []
    for m in (model, channels_last):
        P = wc.BatchNormPreconditioner(m)
        optimizer = torch.optim.Adam(m.parameters(), lr=0.02, fused=True)
        wc.reparameterize(optimizer, P)
        for _ in range(3):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
        results.append([p.detach() for p in m.parameters()])
    assert difference(*results) < 1e-12
    assert channels_last[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("attach", [wc.precondition, wc.reparameterize])
def test_nothing_in_a_step_waits_for_the_device(attach):
    """On the meta device tensors have no values: whatever reads one, or copies one to the host, raises."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).to("meta")
    P = wc.BatchNormPreconditioner(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attach(optimizer, P @ Twice(model.parameters()))
    for _ in range(2):
        model(torch.empty(5, 4, device="meta")).sum().backward()
        optimizer.step()
    assert all(p.is_meta for p in model.parameters())


def test_compiled_and_eager_agree():
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        p = [nn.Parameter(torch.randn(n, 3)) for n in (1, 50, 7)]
        optimizer = torch.optim.Adam(p, lr=0.02)
        handle = wc.reparameterize(
            optimizer, wc.DiagonalPreconditioner(p, [torch.rand(x.shape) + 0.5 for x in p]), compile=compiled
        )
        wc.regularize(optimizer, R.L1(1.0), params="all")
        for t in range(5):
            for x in p:
                x.grad = torch.randn_like(x)
                x.grad[t:] = 0 if t == 3 else 1
            optimizer.step()
        handle.remove()
        results.append([x.detach() for x in p])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
        assert torch.equal(a == 0, b == 0)
    assert sum(int((x == 0).sum()) for x in results[0]) > 0
    p = [nn.Parameter(torch.randn(50, 3) * 100), nn.Parameter(-torch.zeros(3))]
    optimizer = torch.optim.SGD(p, lr=0.1)
    wc.reparameterize(
        optimizer, wc.DiagonalPreconditioner(p, [torch.rand(x.shape) * 3 + 0.01 for x in p]), compile=True
    )
    before = [x.detach().clone().view(torch.int32) for x in p]
    for x in p:
        x.grad = torch.zeros_like(x)
    for _ in range(100):
        optimizer.step()
    assert same(before, [x.detach().view(torch.int32) for x in p])


# -- steps by the optimizer's rule, as they are compiled; here the same functions run as they are --

BY_RULE = (
    *("SGD", "heavy ball", "Nesterov", "Adagrad", "RMSprop", "Adam", "AMSGrad", "AdamW", "foreach", "fused", "ours"),
    *("maximize", "groups"),
)
MORE = {
    "maximize": lambda p: torch.optim.Adam(p, lr=0.02, maximize=True, weight_decay=0.1),
    "groups": lambda p: torch.optim.AdamW([{"params": p[:2]}, {"params": p[2:], "lr": 0.1, "betas": (0.5, 0.6)}]),
}


@pytest.fixture
def by_rule(monkeypatch):
    """The steps that were taken by a rule."""
    taken = []
    step = change_of_variables.step_by_rule

    def recorded(optimizer, inside, compiled):
        taken.append(optimizer)
        return step(optimizer, inside, compiled)

    monkeypatch.setattr(change_of_variables, "step_by_rule", recorded)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(one_pass, "_KERNELS", {})
    return taken


def entrywise(model):
    D = diagonal(model)
    return wc.DiagonalPreconditioner(
        D.parameters, [s.expand(p.shape).clone() for s, p in zip(D.scales, D.parameters, strict=True)]
    )


@pytest.mark.parametrize("attach", [wc.precondition, wc.reparameterize])
@pytest.mark.parametrize("name", BY_RULE)
def test_a_step_by_the_rule_is_the_optimizers(name, attach, by_rule):
    build = {**OPTIMIZERS, **MORE}[name]
    results = [
        in_p(build, entrywise, attach=(lambda o, P, c=compiled: attach(o, P, compile=c),)) for compiled in (True, False)
    ]
    assert len(by_rule) == 50
    assert difference(*results) < 1e-10


@pytest.mark.parametrize("attach", [wc.precondition, wc.reparameterize])
def test_what_the_rule_does_not_know_is_left_to_the_optimizer(attach, by_rule):
    for name, given in (("NAdam", entrywise), ("Rprop", entrywise), ("Adam", diagonal), ("SGD", standardizing)):
        model = network()
        handle = attach(OPTIMIZERS[name](model.parameters()), given(model), compile=True)
        train(model, handle.optimizer, 2)
    model = network()
    D = entrywise(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(optimizer, wc.DiagonalPreconditioner(D.parameters[:2], D.scales[:2]), compile=True)
    wc.regularize(optimizer, R.L1(0.1))  # sees z and its gradient between the two
    train(model, optimizer, 2)
    assert not by_rule


@pytest.mark.parametrize("attach", [wc.precondition, wc.reparameterize])
def test_a_rule_steps_what_P_covers_and_the_optimizer_the_others(attach, by_rule):
    results = []
    for compiled in (True, False):
        model = network()
        D = entrywise(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.2)
        attach(optimizer, wc.DiagonalPreconditioner(D.parameters[:2], D.scales[:2]), compile=compiled)
        train(model, optimizer, 3)
        model[0].bias.requires_grad_(False)
        after = train(model, optimizer, 3)
        results.append([*after, *(optimizer.state[p]["momentum_buffer"] for p in model.parameters())])
    assert len(by_rule) == 6
    assert difference(*results) < 1e-12


def test_it_is_compiled_once_the_run_is_long_enough(by_rule, monkeypatch):
    entries = sum(p.numel() for p in network().parameters())
    monkeypatch.setattr(change_of_variables, "WORTH_COMPILING", 3 * entries)
    ours = in_p(OPTIMIZERS["Adam"], entrywise, 5)
    assert len(by_rule) == 3
    assert difference(ours, in_z(OPTIMIZERS["Adam"], entrywise, 5)) < 1e-12


def test_without_a_compiler_steps_are_the_optimizers_own(by_rule, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no C++ compiler found\nat all")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="no C") as caught:
        ours = in_p(OPTIMIZERS["Adam"], entrywise, 5, attach=(lambda o, P: wc.reparameterize(o, P, compile=True),))
    assert len(caught) == len(by_rule) == 1
    assert difference(ours, in_z(OPTIMIZERS["Adam"], entrywise, 5)) < 1e-12


def test_what_is_compiled_does_not_keep_parameters(by_rule):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    wc.reparameterize(optimizer, entrywise(model), compile=True)
    train(model, optimizer, 1)
    p = weakref.ref(model[0].weight)
    del model, optimizer
    by_rule.clear()
    gc.collect()
    assert p() is None


def test_what_somebody_kept_of_a_step_is_not_written_over():
    class Keeping(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            self.kept = [p.grad for p in self.param_groups[0]["params"]]
            super().step()

    model = network()
    optimizer = Keeping(model.parameters(), lr=0.1)
    P = standardizing(model)
    wc.precondition(optimizer, P)
    train(model, optimizer, 1)
    kept, expected = optimizer.kept, P.gram([p.grad for p in model.parameters()])
    train(model, optimizer, 1)
    assert difference(kept, expected) < 1e-15


def test_bad_input_is_refused_at_the_door():
    model = network()
    P, optimizer = standardizing(model), torch.optim.SGD(model.parameters(), lr=0.1)

    def refused(match, make, error=ValueError):
        with pytest.raises(error, match=match):
            make()

    for attach, other in ((wc.precondition, wc.reparameterize), (wc.reparameterize, wc.precondition)):
        refused("P is a Tensor", lambda a=attach: a(optimizer, torch.ones(3)), TypeError)
        refused(
            "P is a class DiagonalPreconditioner", lambda a=attach: a(optimizer, wc.DiagonalPreconditioner), TypeError
        )
        refused("the optimizer is a list", lambda a=attach: a([], P), TypeError)
        strange = standardizing(network())
        refused("none of the 4 parameters of P", lambda a=attach, s=strange: a(optimizer, s))
        zero = Twice(model.parameters(), 0.0)
        refused("not finite and invertible in torch.float64 at param", lambda a=attach, z=zero: a(optimizer, z))
        nan = Twice(model.parameters(), float("nan"))
        refused("not finite and invertible", lambda a=attach, n=nan: a(optimizer, n))
        flat = Shapeless(model.parameters())
        refused(r"shape \(\) on cpu of parameter 0", lambda a=attach, f=flat: a(optimizer, f))
        coarse = Coarse(model.parameters())
        refused("in torch.float32; it is in torch.float64", lambda a=attach, c=coarse: a(optimizer, c))
        handle = attach(optimizer, P)
        verb = attach.__name__
        refused(f"under {verb} already", lambda a=attach: a(optimizer, P))
        refused(f"under {verb} already.*P1 @ P2", lambda o=other: o(optimizer, P))
        handle.remove()
        assert repr(handle).startswith("removed: ")
    lbfgs = torch.optim.LBFGS(model.parameters())
    refused("LBFGS searches along a line", lambda: wc.precondition(lbfgs, P), TypeError)
    moving = wc.BatchNormPreconditioner(model)
    refused("constant after its remove", lambda: wc.reparameterize(lbfgs, moving), TypeError)
    differentiable = torch.optim.SGD(model.parameters(), lr=0.1, differentiable=True)
    refused("differentiable=True", lambda: wc.precondition(differentiable, P))
    complex_ = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    of_complex = Twice([complex_])
    refused("is torch.complex64", lambda: wc.precondition(torch.optim.SGD([complex_]), of_complex))
