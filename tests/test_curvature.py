"""Curvature operators against dense twins in float64 on every problem of the shared table."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

from tests.problems import PROBLEMS, batches_of, make, train
from wellcond.curvature import GaussNewton, Hessian, OutputUnknownError
from wellcond.curvature.engine.keeping import Kept, engine_of
from wellcond.parameters import flatten, unflatten
from wellcond.preconditioners import DiagonalPreconditioner, preconditioner_of
from wellcond.problem import Problem


@pytest.fixture(params=PROBLEMS, ids=str)
def name(request) -> str:
    return request.param


def problem_of(name: str) -> Problem:
    case = make(name)
    return Problem(case.model, case.loss_fn, case.data)


def kept(problem: Problem) -> Kept:
    """What is kept in the open block."""
    return engine_of(problem).kept(problem)


def dense_twin(name: str) -> torch.Tensor:
    """The Hessian by torch's own function, of a functional model with copied buffers and the same dropout mask."""
    case = make(name)
    names = [n for n, _ in case.model.named_parameters()]
    parameters = [p.detach() for p in case.model.parameters()]

    def loss(vector):
        values = dict(zip(names, unflatten(vector, parameters), strict=True))
        N = sum(len(y) for _, y in batches_of(case))
        total = 0.0
        for index, (x, y) in enumerate(batches_of(case)):
            buffers = {n: b.clone() for n, b in case.model.named_buffers()}
            torch.manual_seed(index)  # the seed that a Problem of seed 0 gives to batch `index`
            total = total + len(y) / N * case.loss_fn(functional_call(case.model, (values, buffers), (x,)), y)
        return total

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, flatten(parameters))


def test_the_hessian_is_its_dense_twin(name):
    problem, expected = problem_of(name), dense_twin(name)
    assert torch.allclose(Hessian(problem).dense(), expected, rtol=1e-9, atol=1e-12)


def test_products_are_columns_of_the_dense_matrix(name):
    problem = problem_of(name)
    generator = torch.Generator().manual_seed(1)
    for operator in (Hessian(problem), GaussNewton(problem)):
        dense = operator.dense()
        V = torch.randn(problem.size, 3, dtype=torch.float64, generator=generator)
        assert torch.allclose(operator @ V, dense @ V, rtol=1e-9, atol=1e-12)
        assert torch.allclose(dense, dense.T, atol=1e-12)


def test_kept_graphs_give_the_same_products(name):
    problem = problem_of(name)
    for operator in (Hessian(problem), GaussNewton(problem)):
        v = torch.randn(problem.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        streamed = operator @ v
        with problem:
            first, second = operator @ v, operator @ v
            assert kept(problem).ways
        assert not engine_of(problem)._blocks
        assert torch.equal(first, second)
        assert torch.allclose(first, streamed, rtol=1e-12, atol=1e-14)


def test_graphs_are_not_kept_beyond_the_memory_limit():
    case = make("uneven batches")
    problem = Problem(case.model, case.loss_fn, case.data, memory_limit=10)
    operator = Hessian(problem)
    with problem:
        operator.matvec(torch.ones(problem.size, dtype=torch.float64))
        assert not kept(problem).ways
    # With plenty of room a graph counts as the most that it might be; a quarter of that is too little for all.
    some = Problem(case.model, case.loss_fn, case.data)
    with some:
        Hessian(some).matvec(torch.ones(some.size, dtype=torch.float64))
        most = kept(some).bytes
    limited = Problem(case.model, case.loss_fn, case.data, memory_limit=int(most / 4))
    with limited:
        product = Hessian(limited).matvec(torch.ones(limited.size, dtype=torch.float64))
        assert 0 < len(kept(limited).ways) < 3
        assert 0 < kept(limited).bytes <= limited.memory_limit
    assert torch.allclose(product, operator.matvec(torch.ones(problem.size, dtype=torch.float64)))


@pytest.mark.parametrize("name", [n for n in PROBLEMS if n not in ("batch norm", "dropout", "LSTM", "attention")])
def test_gauss_newton_is_jacobian_times_loss_hessian_times_jacobian(name):
    case = make(name)
    problem = Problem(case.model, case.loss_fn, case.data)
    names = [n for n, _ in case.model.named_parameters()]
    parameters = [p.detach() for p in case.model.parameters()]
    N = sum(len(y) for _, y in batches_of(case))
    expected = torch.zeros(problem.size, problem.size, dtype=torch.float64)
    for x, y in batches_of(case):

        def output(vector, x=x):
            values = dict(zip(names, unflatten(vector, parameters), strict=True))
            return functional_call(case.model, values, (x,)).reshape(-1)

        vector = flatten(parameters)
        J = jacrev(output)(vector)
        shape = case.model(x).shape
        curvature = hessian(lambda o, y=y, shape=shape: case.loss_fn(o.view(shape), y))(output(vector))
        expected += len(y) / N * J.T @ curvature @ J
    operator = GaussNewton(problem)
    assert torch.allclose(operator.dense(), expected, rtol=1e-9, atol=1e-12)
    assert torch.linalg.eigvalsh(operator.dense())[0] > -1e-12


def test_least_squares_is_known_in_closed_form():
    """Half the mean squared error of a linear model has the Hessian XᵀX/N, whatever its weights."""
    torch.manual_seed(0)
    X, y = torch.randn(40, 6, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False).double()
    batches = [(X[:25], y[:25]), (X[25:], y[25:])]
    problem = Problem(model, lambda o, t: 0.5 * (o - t).square().mean(), batches)
    expected = X.T @ X / 40
    assert torch.allclose(Hessian(problem).dense(), expected, rtol=1e-12, atol=1e-14)
    assert torch.allclose(GaussNewton(problem).dense(), expected, rtol=1e-12, atol=1e-14)
    best = torch.linalg.lstsq(X, y).solution
    assert torch.allclose(problem.gradient(), expected @ (model.weight.detach().T - best).flatten(), rtol=1e-10)


def test_preconditioned_is_the_explicit_product(name):
    case = make(name)
    problem = Problem(case.model, case.loss_fn, case.data)
    scales = [torch.rand_like(p) + 0.1 for p in case.model.parameters()]
    P = DiagonalPreconditioner(list(case.model.parameters()), scales)
    D = torch.diag(flatten(scales).detach())
    for operator in (Hessian(problem), GaussNewton(problem)):
        dense, z = operator.dense(), operator.preconditioned(P)
        assert torch.allclose(z.dense(), D @ dense @ D, rtol=1e-10, atol=1e-13)
        v = torch.randn(problem.size, dtype=torch.float64)
        assert torch.allclose(z @ v, D @ (dense @ (D @ v)), rtol=1e-9, atol=1e-12)
        assert torch.allclose(z.gradient(), D @ problem.gradient(), rtol=1e-12)
        assert torch.allclose(z.semidefinite().dense(), D @ GaussNewton(problem).dense() @ D, rtol=1e-9, atol=1e-12)


def test_the_preconditioner_of_an_optimizer_in_another_order_is_matched_by_parameter():
    case = make("tanh MLP")
    groups = [{"params": [p]} for p in reversed(list(case.model.parameters()))]
    optimizer = torch.optim.RMSprop(groups, lr=1e-3)
    train(case, optimizer, 3)
    problem = Problem(case.model, case.loss_fn, case.data)
    P2 = [1 / (optimizer.state[p]["square_avg"].sqrt() + 1e-8) for p in case.model.parameters()]
    D = torch.diag(flatten(P2).sqrt())
    z = Hessian(problem).preconditioned(preconditioner_of(optimizer))
    assert torch.allclose(z.dense(), D @ Hessian(problem).dense() @ D, rtol=1e-9)


def test_a_preconditioner_over_other_parameters_is_refused_by_name():
    case, other = make("tanh MLP"), make("tanh MLP")
    optimizer = torch.optim.Adam(other.model.parameters())
    train(other, optimizer, 1)
    with pytest.raises(ValueError, match=r"does not cover 0\.weight"):
        Hessian(Problem(case.model, case.loss_fn, case.data)).preconditioned(preconditioner_of(optimizer))


def test_gauss_newton_needs_an_output():
    case = make("tanh MLP")
    hidden = Problem(case.model, loss=lambda m, b: case.loss_fn(m(b[0]), b[1]), data=case.data)
    with pytest.raises(OutputUnknownError, match="loss_fn"):
        GaussNewton(hidden)
    assert Hessian(hidden).semidefinite() is None

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = case.model

        def forward(self, x):
            return self.inner(x), x

    pair = Problem(Pair(), lambda o, t: case.loss_fn(o[0], t), case.data)
    with pytest.raises(OutputUnknownError, match="tuple"):
        GaussNewton(pair).matvec(torch.ones(pair.size, dtype=torch.float64))
    assert torch.allclose(Hessian(pair).dense(), Hessian(Problem(case.model, case.loss_fn, case.data)).dense())


def test_a_linear_loss_has_no_curvature():
    model = nn.Linear(3, 1).double()
    X = torch.randn(5, 3, dtype=torch.float64)
    problem = Problem(model, lambda o, t: (o * t).mean(), (X, torch.ones(5, 1, dtype=torch.float64)))
    assert float(Hessian(problem).dense().abs().max()) == 0.0
    assert float(GaussNewton(problem).dense().abs().max()) == 0.0
