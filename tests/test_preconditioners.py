"""Reading P off an optimizer: one step moves p by −α P²g (theory, section 3.1)."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.problems import make, train
from wellcond.preconditioners import (
    BatchNormPreconditioner,
    DiagonalPreconditioner,
    preconditioner_of,
    reads,
    steps_of,
)
from wellcond.preconditioners.reading import supported

# Momentum is off: then the step is −α P² g and nothing else.
OPTIMIZERS = {
    "SGD": lambda p, **kw: torch.optim.SGD(p, lr=0.05, **kw),
    "Adagrad": lambda p, **kw: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.01, initial_accumulator_value=0.1, **kw),
    "RMSprop": lambda p, **kw: torch.optim.RMSprop(p, lr=0.01, eps=1e-6, **kw),
    "RMSprop centered": lambda p, **kw: torch.optim.RMSprop(p, lr=0.01, centered=True, eps=1e-3, **kw),
    "Adam": lambda p, **kw: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.95), **kw),
    "Adam amsgrad": lambda p, **kw: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.9), amsgrad=True, **kw),
    "AdamW": lambda p, **kw: torch.optim.AdamW(p, lr=0.01, betas=(0.0, 0.95), weight_decay=0.0, **kw),
    "AdamW amsgrad": lambda p, **kw: torch.optim.AdamW(p, betas=(0.0, 0.9), weight_decay=0.0, amsgrad=True, **kw),
    "NAdam": lambda p, **kw: torch.optim.NAdam(p, lr=0.01, betas=(0.0, 0.95), **kw),
    "RAdam": lambda p, **kw: torch.optim.RAdam(p, lr=0.01, betas=(0.0, 0.95), **kw),  # adaptive from step 6 on
    "Adamax": lambda p, **kw: torch.optim.Adamax(p, lr=0.01, betas=(0.0, 0.95), **kw),
    "Adadelta": lambda p, **kw: torch.optim.Adadelta(p, lr=0.5, **kw),
    "ASGD": lambda p, **kw: torch.optim.ASGD(p, lr=2**-7, lambd=0.0, **kw),  # it keeps its rate in float32
}
FUSED = {"SGD", "Adagrad", "Adam", "AdamW"}  # what torch has in fused form on the CPU
FORMS = {"single tensor": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_moves_by_the_preconditioned_gradient(name, maximize, dtype, form):
    if form == "fused" and name.split()[0] not in FUSED:
        with pytest.raises(TypeError, match="fused"):  # torch has no such form; when it has, test it
            OPTIMIZERS[name]([nn.Parameter(torch.ones(1))], fused=True)
        return
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, 3, dtype=dtype)), nn.Parameter(torch.randn(5, dtype=dtype))]
    optimizer = OPTIMIZERS[name](
        [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 2**-6}], maximize=maximize, **FORMS[form]
    )
    sign = 1 if maximize else -1
    for t in range(1, 51):
        gradients = [torch.randn_like(p) * (1 + i) for i, p in enumerate(parameters)]
        before = [p.detach().clone() for p in parameters]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        optimizer.step()
        if t not in (1, 5, 6, 50):
            continue
        P = preconditioner_of(optimizer)
        scaled = P.apply(P.adjoint([g.double() for g in gradients]))
        for p, b, s, step in zip(parameters, before, scaled, steps_of(optimizer), strict=True):
            rate = step.learning_rate * step.correction
            move = (p.detach() - b).double()
            # p itself is rounded to ε|p|; the step carries the rounding that P reports, and a few operations more.
            allowed = (
                torch.finfo(dtype).eps * (4 * b.abs().double() + 8 * s.abs() * rate) + (P.rounding * s * rate).abs()
            )
            assert ((move - sign * rate * s).abs() <= allowed).all(), (name, t)


@pytest.mark.parametrize("form", ["single tensor", "fused"])
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "Adam", "AdamW"])
def test_a_learning_rate_may_be_a_tensor(name, form):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    optimizer = OPTIMIZERS[name]([p], **FORMS[form])
    optimizer.param_groups[0]["lr"] = torch.tensor(0.03)
    for _ in range(5):
        p.grad, before = torch.randn_like(p), p.detach().clone()
        optimizer.step()
    P, (step,) = preconditioner_of(optimizer), steps_of(optimizer)
    expected = before - step.learning_rate * step.correction * P.scales[0] ** 2 * p.grad
    assert torch.allclose(p, expected, rtol=0, atol=1e-9)  # the learning rate itself is a float32


def test_sparse_adam_on_the_rows_that_it_steps():
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=True, dtype=torch.float64)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.01, betas=(0.0, 0.95))
    for t in range(1, 51):
        rows = torch.randperm(6)[:3]
        before = table.weight.detach().clone()
        optimizer.zero_grad()
        (table(rows) * torch.randn(3, 3, dtype=torch.float64)).sum().backward()
        optimizer.step()
        if t in (1, 5, 6, 50):
            gradient = table.weight.grad.to_dense()
            expected = before - 0.01 * preconditioner_of(optimizer).scales[0] ** 2 * gradient
            assert torch.allclose(table.weight[rows], expected[rows], rtol=0, atol=1e-15)


@pytest.mark.parametrize("maximize", [False, True])
def test_adadelta_with_weight_decay_recovers_the_gradient_that_it_used(maximize):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = torch.optim.Adadelta([p], lr=0.5, weight_decay=0.1, maximize=maximize)
    for t in range(1, 51):
        p.grad, before = torch.randn_like(p), p.detach().clone()
        optimizer.step()
        used = 0.1 * before + (-p.grad if maximize else p.grad)
        move = before - 0.5 * preconditioner_of(optimizer).scales[0] ** 2 * used
        assert torch.allclose(p, move, rtol=0, atol=1e-6 * float((p.detach() - before).abs().max())), t


def test_adadelta_needs_the_gradient_of_its_last_step():
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adadelta([p])
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="between step\\(\\) and zero_grad"):
        preconditioner_of(optimizer)


class Lookalike(torch.optim.Optimizer):
    """An optimizer that this library does not know: RMSprop with a decay of 1/2, by another name of its state."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "eps": 1e-3})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                v.mul_(0.5).addcmul_(p.grad, p.grad, value=0.5)
                p.addcdiv_(p.grad, v.sqrt().add_(group["eps"]), value=-group["lr"])


def test_three_lines_register_an_optimizer_of_ones_own():
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = Lookalike([p], lr=0.1)
    with pytest.raises(TypeError, match=r"Lookalike can't be read.*wellcond\.preconditioners\.reads"):
        preconditioner_of(optimizer)

    @reads(Lookalike)
    def squared_scale(state, group):
        return 1 / (state["v"].sqrt() + group["eps"])

    with pytest.raises(ValueError, match="take a step first"):
        preconditioner_of(optimizer)
    p.grad, before = torch.tensor([0.3, 5.0], dtype=torch.float64), p.detach().clone()
    optimizer.step()
    moved = before - 0.1 * preconditioner_of(optimizer).scales[0] ** 2 * p.grad
    assert torch.allclose(p, moved, rtol=1e-15)
    assert "Lookalike" in supported()


def test_a_registered_function_that_gives_another_shape_is_refused():
    class Wrong(Lookalike):
        pass

    @reads(Wrong)
    def squared_scale(state, group):
        return torch.ones(3)

    p = nn.Parameter(torch.ones(2))
    optimizer = Wrong([p], lr=0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(ValueError, match=r"shape \(3,\) for a parameter of shape \(2,\)"):
        preconditioner_of(optimizer)


def test_a_reading_survives_deepcopy_and_pickling():
    case = make("tanh MLP")
    optimizer = torch.optim.Adam(case.model.parameters())
    train(case, optimizer, 2)
    expected = preconditioner_of(optimizer).scales
    twin = copy.deepcopy(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(preconditioner_of(twin).scales, expected, strict=True))
    loaded = pickle.loads(pickle.dumps(optimizer.state_dict()))
    fresh = torch.optim.Adam(case.model.parameters())
    fresh.load_state_dict(loaded)
    assert all(torch.equal(a, b) for a, b in zip(preconditioner_of(fresh).scales, expected, strict=True))


def test_reading_changes_nothing():
    case = make("tanh MLP")
    optimizer = torch.optim.Adagrad(case.model.parameters())
    train(case, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    preconditioner_of(optimizer)
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert all(torch.equal(a, after["state"][i][k]) for i, s in before["state"].items() for k, a in s.items())


@pytest.mark.parametrize(
    "make_optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]
)
def test_a_fresh_optimizer_is_told_to_take_a_step(make_optimizer):
    with pytest.raises(ValueError, match="take a step first"):
        preconditioner_of(make_optimizer(nn.Linear(2, 1).parameters()))


def test_a_fresh_sgd_is_the_identity():
    assert preconditioner_of(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)).is_identity


def test_a_parameter_without_a_step_is_not_preconditioned():
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    optimizer = torch.optim.Adam(model.parameters())
    model[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    P = preconditioner_of(optimizer)
    assert [bool((s == 1).all()) for s in P.scales] == [False, False, True, True]


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (lambda p: torch.optim.Rprop(p), "sign of the current gradient"),
        (lambda p: torch.optim.LBFGS(p), "not diagonal"),
        (lambda p: torch.optim.Adafactor(p), "factored"),
        (lambda p: torch.optim.Muon([p[0]]), "momentum alone"),
    ],
)
def test_what_is_no_preconditioner_is_refused_by_name(optimizer, reason):
    made = optimizer(list(nn.Linear(2, 1).parameters()))
    with pytest.raises(TypeError, match=f"{type(made).__name__} can't be read.*{reason}.*supported are") as caught:
        preconditioner_of(made)
    assert all(name in str(caught.value) for name in supported())


def test_a_subclass_may_step_differently_and_is_not_guessed():
    class Mine(torch.optim.Adam):
        pass

    with pytest.raises(TypeError, match="Mine can't be read"):
        preconditioner_of(Mine(nn.Linear(2, 1).parameters()))


def test_a_wrapper_around_an_optimizer_is_taken_off():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    assert preconditioner_of(Wrapper(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))).is_identity
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        preconditioner_of("adam")


def test_a_state_that_is_not_finite_is_refused():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.tensor([[1.0, torch.nan]])).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="not finite and positive"):
        preconditioner_of(optimizer)


def test_apply_adjoint_and_invert_belong_together():
    torch.manual_seed(0)
    parameters = [torch.randn(2, 3), torch.randn(4)]
    P = DiagonalPreconditioner(parameters, [torch.rand(2, 3) + 0.5, torch.rand(4) + 0.5])
    x, y = [torch.randn(2, 3), torch.randn(4)], [torch.randn(2, 3), torch.randn(4)]
    inner = lambda a, b: sum(float((s * t).sum()) for s, t in zip(a, b, strict=True))  # noqa: E731
    assert inner(P.apply(x), y) == pytest.approx(inner(x, P.adjoint(y)), rel=1e-6)
    for back, original in zip(P.invert(P.apply(x)), x, strict=True):
        assert torch.allclose(back, original)
    with pytest.raises(ValueError, match="positive"):
        DiagonalPreconditioner(parameters, [torch.zeros(2, 3), torch.ones(4)])
    with pytest.raises(ValueError, match="got 1 scales for 2 parameters"):
        DiagonalPreconditioner(parameters, [torch.ones(2, 3)])
    for shape in ((3, 2), (1, 2, 3), (2,)):
        with pytest.raises(ValueError, match=r"for a parameter of shape \(2, 3\); give one for each entry"):
            DiagonalPreconditioner(parameters, [torch.ones(shape), torch.ones(4)])


def test_diagonal_is_p_on_ones():
    p, q = nn.Parameter(torch.tensor([[1.0], [-2.0]], dtype=torch.float64)), nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([p, q], eps=0.5)  # q has had no step: its scale is an expanded 1
    p.grad = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    adam.step()
    P = preconditioner_of(adam)
    assert P.diagonal().square() == pytest.approx([1 / 3.5, 1 / 4.5, 1, 1, 1])
    assert torch.equal(
        P.diagonal(), torch.cat([x.flatten() for x in P.apply([torch.ones_like(p), torch.ones_like(q)])])
    )


def test_what_is_not_diagonal_has_no_diagonal():
    model = nn.Linear(2, 2)
    P = BatchNormPreconditioner(model)
    for other in (P, P @ DiagonalPreconditioner(list(model.parameters()), [torch.ones(2, 2), torch.ones(2)])):
        with pytest.raises(ValueError, match="is not diagonal"):
            other.diagonal()
