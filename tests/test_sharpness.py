"""Critical sharpness: the optimizer's own step, the crossing and the curvature against their definitions, no trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.problems import PROBLEMS, batches_of, make, train
from wellcond import optim, penalties
from wellcond.curvature import Hessian
from wellcond.preconditioners import next_step
from wellcond.problem import Problem
from wellcond.stability import critical_sharpness
from wellcond.steps import regularize


def problem_of(case):
    return Problem(case.model, case.loss_fn, case.data)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "foreach AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-3),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, line_search_fn="strong_wolfe"),
    "Muon": lambda p: torch.optim.Muon([x for x in p if x.ndim == 2], lr=1e-3),
    "ours": lambda p: optim.AdamW(p, lr=1e-3),
}


def one_step(case, optimizer):
    """A step of plain training on all the data."""

    def closure():
        optimizer.zero_grad()
        loss = case.loss_fn(case.model(case.data[0]), case.data[1])
        loss.backward()
        return loss

    optimizer.step(closure)


def everything(model, optimizer):
    """Bit for bit what must not change."""
    tensors = [t for p in model.parameters() for t in (p.detach(), p.grad) if t is not None]
    tensors += [*model.buffers(), torch.get_rng_state()]
    values = [t.clone() for t in tensors]
    state = copy.deepcopy(optimizer.state_dict())
    flat = [(k, x) for _, s in sorted(state["state"].items()) for k, x in sorted(s.items(), key=lambda i: i[0])]
    return values, flat, [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]]


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a is None and b is None)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_is_the_optimizers_own_and_leaves_no_trace(name):
    case = make("batch norm")
    optimizer = OPTIMIZERS[name](list(case.model.parameters()))
    for _ in range(3):
        one_step(case, optimizer)
    problem = problem_of(case)
    before = everything(case.model, optimizer)
    steps = len(optimizer.state)
    found = critical_sharpness(problem, optimizer)
    d, gradients = next_step(problem, optimizer, problem.gradient())
    assert same(before, everything(case.model, optimizer))
    assert len(optimizer.state) == steps
    assert found.forward_passes <= 10 + gradients - 1
    assert (found.gradients > 1) == (gradients > 1) == (name == "LBFGS")
    old = torch.cat([p.detach().flatten() for p in case.model.parameters()])
    one_step(case, optimizer)
    new = torch.cat([p.detach().flatten() for p in case.model.parameters()])
    torch.testing.assert_close(d, new - old, rtol=1e-9, atol=1e-13)
    assert found.step_norm == pytest.approx(float((new - old).norm()))


def test_sparse_adam_steps_the_rows_that_have_a_gradient():
    case = make("tied weights")
    problem = problem_of(case)
    weight = case.model.embedding.weight
    optimizer = torch.optim.SparseAdam([weight], lr=1e-2)
    weight.grad = problem.gradient().view_as(weight).to_sparse(1)
    optimizer.step()
    d, _ = next_step(problem, optimizer, problem.gradient())
    old = weight.detach().clone()
    weight.grad = problem.gradient().view_as(weight).to_sparse(1)
    optimizer.step()
    torch.testing.assert_close(d.view_as(weight), weight.detach() - old)
    assert critical_sharpness(problem, optimizer).curvature.defined


@pytest.mark.parametrize("name", PROBLEMS)
def test_curvature_and_crossing_against_their_definitions(name):
    """The curvature is dᵀHd/‖d‖² by the dense product, and the loss is below its start before η_c, above after."""
    case = make(name)
    optimizer = torch.optim.Adam(case.model.parameters(), lr=1e-3)
    train(case, optimizer, 5)
    problem = problem_of(case)
    d, _ = next_step(problem, optimizer, problem.gradient())
    found = critical_sharpness(problem, optimizer)
    truth = float(d @ (Hessian(problem) @ d) / (d @ d))
    assert found.curvature.value == pytest.approx(truth, rel=1e-6)
    assert truth in found.curvature
    assert found.slope == pytest.approx(float(problem.gradient() @ d))
    rate = found.critical_learning_rate
    losses = []
    for c in (rate.low / 1e-3, rate.high / 1e-3):
        with problem.moved(c * d):
            losses.append(problem.loss())
    assert losses[0] <= found.loss <= losses[1]
    assert rate.low <= rate.value <= rate.high
    assert found.sharpness.value == pytest.approx(2 / rate.value)


def test_float32_errors_are_honest():
    """The interval holds the float64 truth on every problem, and where the loss is smooth and not very steep it is
    within a quarter of it."""
    for name in PROBLEMS:
        case = make(name)
        optimizer = torch.optim.Adam(case.model.parameters(), lr=1e-3)
        train(case, optimizer, 5)
        exact = problem_of(case)
        d, _ = next_step(exact, optimizer, exact.gradient())
        truth = float(d @ (Hessian(exact) @ d) / (d @ d))
        model = copy.deepcopy(case.model).float()
        twin = torch.optim.Adam(model.parameters(), lr=1e-3)
        twin.load_state_dict(optimizer.state_dict())
        batches = [tuple(x.float() if x.is_floating_point() else x for x in batch) for batch in batches_of(case)]
        found = critical_sharpness(Problem(model, case.loss_fn, batches), twin)
        assert truth in found.curvature, name
        if name not in ("ReLU MLP", "layer norm", "batch norm"):
            assert found.curvature.high - found.curvature.low < 0.5 * truth, name


class Bowl(nn.Module):
    """½ pᵀ diag(3, 0.1) p, or a function of it."""

    def __init__(self, start=(1.0, 0.0), shape=lambda x: x):
        super().__init__()
        self.p, self.shape = nn.Parameter(torch.tensor(start, dtype=torch.float64)), shape

    def forward(self, x):
        return self.shape((0.5 * torch.tensor([3.0, 0.1], dtype=torch.float64) * self.p**2).sum()) * x


def bowl_problem(model):
    one = torch.ones(1, dtype=torch.float64)
    return Problem(model, lambda output, target: output.sum(), (one, one))


def test_along_an_eigenvector_it_is_the_eigenvalue():
    for start, eigenvalue in (((1.0, 0.0), 3.0), ((0.0, 1.0), 0.1)):
        model = Bowl(start)
        for lr in (1e-3, 0.6, 10.0):
            found = critical_sharpness(bowl_problem(model), torch.optim.SGD(model.parameters(), lr=lr))
            assert found.sharpness.value == pytest.approx(eigenvalue, rel=1e-9)
            assert found.critical_learning_rate.value == pytest.approx(2 / eigenvalue, rel=1e-9)
            assert found.curvature.value == pytest.approx(eigenvalue, rel=1e-7)
            assert eigenvalue in found.curvature
            assert eigenvalue in found.sharpness
            assert found.sharpness.high - found.sharpness.low < 0.02 * eigenvalue
    assert "critical learning rate 20" in str(found)


def test_passes_are_counted_and_bounded():
    case = make("uneven batches")
    problem, optimizer = problem_of(case), torch.optim.SGD(case.model.parameters(), lr=0.1)
    problem.loss()  # which also looks how large the activations are
    calls = []
    case.model.register_forward_hook(lambda *_: calls.append(1))
    for passes in (7, 10, 20):
        calls.clear()
        found = critical_sharpness(problem, optimizer, passes=passes)
        assert len(calls) == 3 * (found.forward_passes + found.gradients)
        assert found.forward_passes <= passes
    tight = found.critical_learning_rate
    assert tight.high - tight.low <= 0.011 * tight.high


def test_what_else_acts_on_a_step_is_left_alone():
    """A scheduler's wrapper, hooks of the optimizer and of all optimizers, penalties."""
    case = make("tanh MLP")
    optimizer = torch.optim.Adam(case.model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    regularize(optimizer, penalties.L1(0.1), model=case.model)
    train(case, optimizer, 2)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("own"))
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("all"))
    try:
        before = everything(case.model, optimizer)
        critical_sharpness(problem_of(case), optimizer)
        assert same(before, everything(case.model, optimizer))
    finally:
        handle.remove()
    assert not calls
    optimizer.step()
    assert calls
    scheduler.step()


def test_no_positive_curvature_no_descent_overflow():
    hill = Bowl((1.0, 0.0), lambda x: -x)
    found = critical_sharpness(bowl_problem(hill), torch.optim.SGD(hill.parameters(), lr=0.1))
    assert found.critical_learning_rate.unresolved
    assert found.critical_learning_rate.low > 0.1
    assert found.sharpness.value == 0
    assert -3.0 in found.curvature
    assert found.curvature.value == pytest.approx(-3.0)

    # Momentum that points uphill.
    bowl = Bowl()
    optimizer = torch.optim.SGD(bowl.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[bowl.p]["momentum_buffer"] = torch.tensor([-100.0, 0.0], dtype=torch.float64)
    uphill = critical_sharpness(bowl_problem(bowl), optimizer)
    assert uphill.slope > 0
    assert not uphill.critical_learning_rate.defined
    assert not uphill.sharpness.defined
    assert uphill.curvature.value == pytest.approx(3.0)

    # exp(½·3p²) − 1 is infinite from |p| = 22 on: the step lands there, and the crossing is at p = −1.
    steep = Bowl((1.0, 0.0), lambda x: torch.expm1(x))
    slope = 3 * math.exp(1.5)
    found = critical_sharpness(bowl_problem(steep), torch.optim.SGD(steep.parameters(), lr=100.0), passes=30)
    assert found.critical_learning_rate.value == pytest.approx(2 / slope, rel=0.01)
    assert 2 / slope in found.critical_learning_rate
    assert found.curvature.value == pytest.approx(12 * math.exp(1.5), rel=1e-4)


def test_parameters_the_optimizer_does_not_have_stay():
    case = make("tanh MLP")
    problem = problem_of(case)
    optimizer = torch.optim.SGD(case.model[0].parameters(), lr=0.1)
    d, _ = next_step(problem, optimizer, problem.gradient())
    n = sum(p.numel() for p in case.model[0].parameters())
    torch.testing.assert_close(d[:n], -0.1 * problem.gradient()[:n])
    assert not d[n:].any()


def test_refusals():
    case = make("tanh MLP")
    problem = problem_of(case)
    parameters = list(case.model.parameters())
    with pytest.raises(ValueError, match="maximizes"):
        critical_sharpness(problem, torch.optim.SGD(parameters, lr=0.1, maximize=True))
    with pytest.raises(ValueError, match="passes"):
        critical_sharpness(problem, torch.optim.SGD(parameters, lr=0.1), passes=6)
    with pytest.raises(ValueError, match="norm 0"):
        critical_sharpness(problem, torch.optim.SGD(parameters, lr=0.0))
    with pytest.raises(ValueError, match="none of the problem's"):
        critical_sharpness(problem, torch.optim.SGD(make("tanh MLP", 1).model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="give a torch"):
        critical_sharpness(problem, parameters)
