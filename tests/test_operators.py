"""What every operator can do: blocks, damping, diagonals, traces, scipy; and the empirical Fisher matrix."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

from tests.problems import PROBLEMS, SPECTRA, batches_of, make, random_spectrum, train
from wellcond.curvature import EmpiricalFisher, GaussNewton, Hessian, OutputUnknownError
from wellcond.curvature.engine import products
from wellcond.linalg import MatrixOperator, eigenvalues
from wellcond.linalg.estimate import student
from wellcond.parameters import flatten
from wellcond.preconditioners import DiagonalPreconditioner, preconditioner_of
from wellcond.problem import Problem
from wellcond.stability.edge import edge_ratio

KINDS = (Hessian, GaussNewton, EmpiricalFisher)


def problem_of(name: str, **settings) -> Problem:
    case = make(name)
    return Problem(case.model, case.loss_fn, case.data, **settings)


def engine(problem: Problem) -> products._Engine:
    return products.engine_of(problem)


def scaled(problem: Problem) -> DiagonalPreconditioner:
    generator = torch.Generator().manual_seed(5)
    scales = [torch.rand(p.shape, dtype=p.dtype, generator=generator) + 0.1 for p in problem.parameters]
    return DiagonalPreconditioner(problem.parameters, scales)


# -- the empirical Fisher matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in ("batch norm", "dropout")])
def test_the_empirical_fisher_is_the_mean_of_outer_products(name):
    case = make(name)
    problem = Problem(case.model, case.loss_fn, case.data)
    gradients = []
    for x, y in batches_of(case):
        for i in range(len(y)):
            loss = case.loss_fn(case.model(x[i : i + 1]), y[i : i + 1])
            gradients.append(flatten(torch.autograd.grad(loss, list(case.model.parameters()))))
    G = torch.stack(gradients)
    assert torch.allclose(EmpiricalFisher(problem).dense(), G.T @ G / len(G), rtol=1e-9, atol=1e-13)
    assert torch.allclose(G.mean(0), problem.gradient(), rtol=1e-9, atol=1e-13)


def test_the_empirical_fisher_of_a_summed_loss_goes_with_its_gradient():
    case = make("tanh MLP")
    mean = Problem(case.model, nn.MSELoss(), case.data)
    total = Problem(case.model, nn.MSELoss(reduction="sum"), case.data)
    factor = total.loss() / mean.loss()
    expected = factor**2 * EmpiricalFisher(mean).dense()
    assert torch.allclose(EmpiricalFisher(total).dense(), expected, rtol=1e-9)


def test_the_empirical_fisher_of_a_loss_that_cannot_be_mapped_over_examples():
    def loss(output, target):
        each = [
            (o - t).square().mean() * (1.0 if float(t.sum()) > 0 else 2.0) for o, t in zip(output, target, strict=True)
        ]
        return sum(each) / len(each)

    case = make("tanh MLP")
    problem = Problem(case.model, loss, case.data)
    F = EmpiricalFisher(problem).dense()
    weights = torch.where(case.data[1].sum(1) > 0, 1.0, 2.0)
    rows = []
    for x, y, w in zip(*case.data, weights, strict=True):
        value = w * (case.model(x[None]) - y).square().mean()
        rows.append(flatten(torch.autograd.grad(value, list(case.model.parameters()))))
    G = torch.stack(rows)
    assert torch.allclose(F, G.T @ G / len(G), rtol=1e-9, atol=1e-13)


def test_no_gradient_of_one_example_under_batch_norm_in_train_mode():
    with pytest.raises(ValueError, match=r"batch norm in train mode.*mode='eval'"):
        EmpiricalFisher(problem_of("batch norm")).dense()
    F = EmpiricalFisher(problem_of("batch norm", mode="eval"))
    assert F.dense().trace() > 0


def test_instance_norm_does_not_mix_examples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.InstanceNorm1d(3), nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = torch.randn(5, 2, 6, dtype=torch.float64), torch.randint(2, (5,))
    F = EmpiricalFisher(Problem(model, nn.CrossEntropyLoss(), (x, y))).dense()
    rows = [
        flatten(torch.autograd.grad(nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), model.parameters()))
        for i in range(5)
    ]
    G = torch.stack(rows)
    assert torch.allclose(F, G.T @ G / 5, rtol=1e-9, atol=1e-13)


def test_a_loss_that_is_no_mean_over_examples_is_refused():
    case = make("softmax regression")
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="neither the mean nor the sum"):
        EmpiricalFisher(Problem(case.model, weighted, case.data)).dense()
    with pytest.raises(OutputUnknownError, match="loss_fn"):
        EmpiricalFisher(Problem(case.model, loss=lambda m, b: case.loss_fn(m(b[0]), b[1]), data=case.data))


# -- blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ReLU MLP", "tied weights", "uneven batches", "LSTM"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_cut_out_of_the_matrix(name, kind):
    problem = problem_of(name)
    whole = kind(problem)
    last = problem.names[-1]
    block = whole.block(last)
    where = torch.cat(
        [torch.full((p.numel(),), n == last) for n, p in zip(problem.names, problem.parameters, strict=True)]
    )
    expected = whole.dense()[where][:, where]
    assert block.names == [last]
    assert block.shape == (int(where.sum()),) * 2
    assert torch.allclose(block.dense(), expected, rtol=1e-9, atol=1e-13)
    assert torch.equal(block.gradient(), problem.gradient()[where])
    v = torch.ones(block.size, dtype=torch.float64)
    with problem:
        assert torch.allclose(block @ v, expected @ v, rtol=1e-9, atol=1e-13)
        assert torch.allclose(whole @ where.double(), whole.dense() @ where.double(), rtol=1e-9, atol=1e-13)


def test_a_block_is_chosen_by_name_pattern_module_or_parameter():
    problem = problem_of("ReLU MLP")
    H, model = Hessian(problem), problem.model
    assert H.block("0.*").names == ["0.weight", "0.bias"]
    assert H.block("*.bias").names == ["0.bias", "2.bias"]
    assert H.block(model[2]).names == ["2.weight", "2.bias"]
    assert H.block(model[2].bias, "0.weight").names == ["0.weight", "2.bias"]
    assert H.block("0.*").block("*.bias").names == ["0.bias"]
    for wrong, words in (
        (("3.*",), "0.weight, 0.bias"),
        ((nn.Linear(2, 2),), "this Linear has none"),
        ((), "is named"),
    ):
        with pytest.raises(ValueError, match=words):
            H.block(*wrong)
    with pytest.raises(TypeError, match="got a int"):
        H.block(3)
    with pytest.raises(ValueError, match=r"they are 0\.weight, 0\.bias$"):
        H.block("0.*").block("2.bias")


def test_a_block_is_preconditioned_and_has_its_own_gauss_newton():
    problem = problem_of("tanh MLP")
    P = scaled(problem)
    block = Hessian(problem).block("0.*")
    D = torch.diag(flatten(P.scales[:2]))
    z = block.preconditioned(P)
    assert torch.allclose(z.dense(), D @ block.dense() @ D, rtol=1e-9, atol=1e-13)
    assert torch.allclose(block.semidefinite().dense(), GaussNewton(problem).block("0.*").dense(), rtol=1e-12)
    assert torch.allclose(z.semidefinite().dense(), D @ GaussNewton(problem).block("0.*").dense() @ D, rtol=1e-9)


# -- damping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_damping_adds_to_the_diagonal(kind):
    problem = problem_of("tanh MLP")
    C, identity = kind(problem), torch.eye(problem.size, dtype=torch.float64)
    expected = C.dense() + 0.3 * identity
    D = torch.diag(flatten(scaled(problem).scales))
    for damped in (C + 0.3, 0.3 + C, (C + 0.1).damped(0.2)):
        assert torch.allclose(damped.dense(), expected, rtol=1e-12)
        assert torch.allclose(damped @ identity, expected, rtol=1e-9, atol=1e-13)
        with problem:
            assert torch.allclose(damped.dense(), expected, rtol=1e-12)
        z = damped.preconditioned(scaled(problem))
        assert torch.allclose(z.dense(), D @ expected @ D, rtol=1e-9, atol=1e-13)
        assert torch.allclose((z + 1.0).dense(), D @ expected @ D + identity, rtol=1e-9, atol=1e-13)
    assert torch.allclose(C.dense(), expected - 0.3 * identity, rtol=1e-12, atol=1e-14)


def test_damping_and_definiteness():
    problem = problem_of("tanh MLP")
    G = GaussNewton(problem)
    assert (G + 0.1).positive_semidefinite
    assert not (G + -0.1).positive_semidefinite
    assert torch.allclose((Hessian(problem) + 0.1).semidefinite().dense(), (G + 0.1).dense())
    assert (Hessian(problem) + -0.1).semidefinite() is None
    z = Hessian(problem).preconditioned(scaled(problem))
    assert torch.allclose((z + 0.1).semidefinite().dense(), z.semidefinite().dense() + 0.1 * torch.eye(problem.size))
    with pytest.raises(ValueError, match="finite"):
        G.damped(math.nan)
    with pytest.raises(TypeError):
        G + "0.1"


def test_products_of_a_damped_operator_are_its_own():
    A = MatrixOperator(torch.eye(3, dtype=torch.float64))
    v = torch.ones(3, dtype=torch.float64)
    damped = A + 1.0
    assert torch.equal(damped @ v, 2 * v)
    assert (A.products, damped.products) == (0, 1)


# -- traces and diagonals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_small_traces_and_diagonals_are_exact(kind):
    problem = problem_of("ReLU MLP")
    C = kind(problem).preconditioned(scaled(problem))
    dense = C.dense()
    trace, diagonal = C.trace(), C.diagonal()
    assert float(dense.trace()) in trace
    assert trace.high - trace.low <= 1e-12 * abs(trace.value)
    assert torch.equal(diagonal.values, dense.diagonal())
    assert float(diagonal.standard_error.max()) == 0.0
    assert diagonal.products == problem.size


@pytest.mark.parametrize("spectrum", [name for name, values in SPECTRA.items() if len(values) > 100])
def test_traces_lie_in_their_intervals(spectrum):
    A = MatrixOperator(random_spectrum(SPECTRA[spectrum]))
    truth = float(A.matrix.trace())
    missed = sum(truth not in A.trace(40, seed=seed, confidence=0.95) for seed in range(100))
    # 5 of 100 are expected to be missed; 15 or more happen by chance with a probability of 4e-5.
    assert missed < 15
    assert A.products == 4000


def test_a_low_rank_trace_is_exact():
    trace = MatrixOperator(random_spectrum(SPECTRA["rank one"])).trace(20)
    assert trace.value == pytest.approx(3.0, rel=1e-12)
    assert trace.high - trace.low < 1e-10


@pytest.mark.parametrize("spectrum", ["indefinite", "planted spike", "graded over 1e12"])
def test_diagonals_are_unbiased_and_know_their_error(spectrum):
    A = MatrixOperator(random_spectrum(SPECTRA[spectrum]))
    estimates = [A.diagonal(40, seed=seed) for seed in range(60)]
    errors = torch.stack([(e.values - A.matrix.diagonal()) / e.standard_error for e in estimates])
    # Student's t of 19 degrees of freedom has a standard deviation of 1.06; 120 × 60 draws.
    assert float(errors.std()) == pytest.approx(1.06, abs=0.1)
    assert abs(float(errors.mean())) < 0.1
    assert all(e.products == 40 for e in estimates)


def test_students_quantile():
    for confidence in (0.9, 0.95, 0.997):
        for freedom in (2, 3, 9, 30, 100):
            assert student(confidence, freedom) == pytest.approx(
                scipy.stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-3
            )


def test_too_few_products_for_an_error_are_refused():
    A = MatrixOperator(torch.eye(50, dtype=torch.float64))
    for estimate in (A.trace, A.diagonal):
        with pytest.raises(ValueError, match="at least 20"):
            estimate(19)


def test_estimates_of_a_matrix_that_is_not_finite_are_refused():
    A = MatrixOperator(torch.full((50, 50), math.inf, dtype=torch.float64))
    with pytest.raises(FloatingPointError, match="not finite"):
        A.trace(20)


def test_estimates_in_float32():
    matrix = random_spectrum(SPECTRA["indefinite"]).float()
    A = MatrixOperator(matrix)
    trace, diagonal = A.trace(60), A.diagonal(60)
    assert float(matrix.double().trace()) in trace
    assert diagonal.values.dtype == torch.float32


# -- scipy, precision, memory ------------------------------------------------------------------------------------


def test_scipy_takes_the_operator():
    case = make("tanh MLP")
    optimizer = torch.optim.Adam(case.model.parameters())
    train(case, optimizer, 5)
    H = Hessian(Problem(case.model, case.loss_fn, case.data)).preconditioned(preconditioner_of(optimizer)) + 0.5
    A, dense = H.to_scipy(), H.dense().numpy()
    assert A.dtype == np.float64
    assert np.allclose(A @ np.eye(H.size), dense)
    assert np.allclose(A.T @ np.ones(H.size), dense.T @ np.ones(H.size))
    v0 = np.ones(H.size)
    assert np.allclose(eigsh(A, 2, which="LA", v0=v0)[0], np.linalg.eigvalsh(dense)[[-2, -1]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_is_measured_in_float32(dtype):
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    single = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    single.load_state_dict(half.state_dict())
    X, y = torch.randn(20, 4).to(dtype), torch.randn(20, 2).to(dtype)
    measured = Problem(half, nn.MSELoss(), (X, y))
    assert measured.dtype == torch.float32
    expected = Hessian(Problem(single, nn.MSELoss(), (X.float(), y.float()))).dense()
    assert torch.equal(Hessian(measured).dense(), expected)
    assert all(p.dtype == dtype for p in half.parameters())


def test_leaving_the_block_frees_the_graphs():
    problem = problem_of("uneven batches")
    H, G = Hessian(problem), GaussNewton(problem)
    with problem:
        for operator in (H, G, H.block("0.*")):
            operator @ torch.ones(operator.size, dtype=torch.float64)
        kept = [weakref.ref(x) for way in engine(problem).kept(problem).ways.values() for x in _tensors(way)]
        assert kept
        assert all(x() is not None for x in kept)
    gc.collect()
    assert all(x() is None for x in kept)


def _tensors(graph) -> list[torch.Tensor]:
    if isinstance(graph, torch.Tensor):
        return [graph]
    parts = graph if isinstance(graph, tuple | list) else vars(graph).values() if hasattr(graph, "__dict__") else []
    return [x for part in parts for x in _tensors(part)]


def test_graphs_are_kept_where_many_products_come(monkeypatch):
    problem = problem_of("tanh MLP")
    H = Hessian(problem)
    made = []
    build = Hessian.batch_graph
    monkeypatch.setattr(Hessian, "batch_graph", lambda self, index: made.append(index) or build(self, index))
    V = torch.eye(problem.size, dtype=torch.float64)
    for _ in range(2):
        H @ V[0]
    assert len(made) == 2
    made.clear()
    H @ V[:, :12]
    assert len(made) == 1
    made.clear()
    # room for the graph, but not for the most that it might be
    problem.memory_limit = 3 * problem.largest_activations()
    with problem:
        H @ V[0], H @ V[1]
        assert len(made) == 2  # one to see its size, one that is kept
        assert engine(problem).kept(problem).ways
    assert not engine(problem)._blocks


def test_nothing_kept_is_used_at_moved_parameters():
    problem = problem_of("tanh MLP")
    H, v = Hessian(problem), torch.ones(problem.size, dtype=torch.float64)
    here = H @ v
    step = torch.full_like(v, 0.1)
    with problem.moved(step):
        there = H @ v
    assert not torch.allclose(here, there)
    for compile_ in (False, True):
        problem.compile = compile_
        with problem:
            assert torch.allclose(H @ v, here, rtol=1e-10)
            matrix = H.dense()
            with problem.moved(step):
                assert torch.allclose(H @ v, there, rtol=1e-10)
                with problem:
                    assert torch.allclose(H @ v, there, rtol=1e-10)
                    assert torch.allclose(H.dense() @ v, there, rtol=1e-10)
                    assert torch.allclose(H @ v, there, rtol=1e-10)
            assert torch.allclose(H @ v, here, rtol=1e-10)
            assert torch.equal(H.dense(), matrix)


def test_a_matrix_that_is_written_into_is_not_the_one_that_is_kept():
    problem = problem_of("tanh MLP")
    H = Hessian(problem)
    with problem:
        expected = H.dense().clone()
        H.dense().zero_()
        assert torch.equal(H.dense(), expected)
    A = MatrixOperator(torch.eye(2))
    A.dense().zero_()
    assert torch.equal(A.dense(), torch.eye(2))


def test_a_tied_weight_is_found_by_all_its_names():
    problem = problem_of("tied weights")
    H = Hessian(problem)
    assert H.block("out.*").names == H.block(problem.model.out).names == ["embedding.weight"]


def test_damping_is_no_noise_in_an_estimate():
    A = MatrixOperator(random_spectrum(SPECTRA["indefinite"]))
    plain, damped = A.trace(40), (A + 1e6).trace(40)
    assert damped.high - damped.low == pytest.approx(plain.high - plain.low, rel=1e-6)
    assert damped.value == pytest.approx(plain.value + 120e6)
    plain, damped = A.diagonal(40), (A + 1e6).diagonal(40)
    assert torch.equal(plain.standard_error, damped.standard_error)
    assert torch.allclose(damped.values, plain.values + 1e6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_estimates_at_any_scale_in_float32(scale):
    matrix = random_spectrum(SPECTRA["planted spike"]).float()
    plain, other = MatrixOperator(matrix).diagonal(40), MatrixOperator(matrix * scale).diagonal(40)
    assert torch.allclose(other.values / scale, plain.values, rtol=1e-4, atol=1e-5)
    assert torch.allclose(other.standard_error / scale, plain.standard_error, rtol=1e-3)


def test_what_is_no_operator_problem_or_preconditioner_is_refused():
    problem = problem_of("tanh MLP")
    H = Hessian(problem)
    for call, words in (
        (lambda: Hessian(problem.model), "wc.Problem"),
        (lambda: H.preconditioned(torch.optim.SGD(problem.model.parameters())), "preconditioner_of"),
        (lambda: eigenvalues(torch.eye(3)), "MatrixOperator"),
        (lambda: H.to_scipy() @ np.ones(problem.size, dtype=complex), "complex"),
    ):
        with pytest.raises(TypeError, match=words):
            call()
    for call, words in (
        (lambda: H @ [1.0, 2.0], "a list"),
        (lambda: H.trace(confidence=1), "confidence"),
        (lambda: problem_of("tanh MLP", memory_limit=-1), "memory_limit"),
        (lambda: problem_of("tanh MLP", memory_limit="1GB"), "memory_limit"),
        (lambda: problem_of("tanh MLP", seed=1.5), "whole number"),
        (lambda: problem.moved(torch.ones(3)).__enter__(), "displacement"),
        (lambda: edge_ratio(problem, torch.optim.SGD(problem.parameters), curvature=H.block("0.*")), "or a block"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def _untwistable() -> Problem:
    """A network with a backward pass that torch can't do for several vectors at once."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            if not math.isfinite(float(g.sum().detach())):  # reads a number, which no batched pass can
                raise FloatingPointError
            return 3 * x**2 * g

    class Net(nn.Linear):
        def forward(self, x):
            return Cube.apply(super().forward(x))

    torch.manual_seed(0)
    X = torch.randn(12, 3, dtype=torch.float64)
    return Problem(Net(3, 2).double(), nn.MSELoss(), (X, torch.randn(12, 2, dtype=torch.float64)))


@pytest.mark.parametrize("kind", [Hessian, GaussNewton, EmpiricalFisher])
@pytest.mark.parametrize("name", PROBLEMS)
def test_columns_together_are_those_of_single_products(name, kind):
    case = make(name)
    problem = Problem(case.model, case.loss_fn, case.data)
    operator = kind(problem)
    if kind is EmpiricalFisher and name == "batch norm":
        return
    V = torch.randn(problem.size, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    calls = []
    operator.on_product = lambda: calls.append(0)
    together = operator @ V
    assert len(calls) == operator.products >= 9
    assert not engine(problem).one_by_one
    single = torch.stack([operator @ column.contiguous() for column in V.T], dim=1)
    assert float((together - single).norm()) <= 1e-13 * float(single.norm())


@pytest.mark.parametrize("kind", [Hessian, GaussNewton, EmpiricalFisher])
def test_a_parameter_without_dimensions_is_a_column_like_any_other(kind):
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.temperature = nn.Parameter(torch.tensor(0.7))

        def forward(self, x):
            return torch.tanh(self.temperature * super().forward(x))

    torch.manual_seed(0)
    X, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64)
    problem = Problem(Scaled().double(), nn.MSELoss(), (X, y))
    operator = kind(problem)
    I = torch.eye(problem.size, dtype=torch.float64)
    single = torch.stack([operator @ column for column in I], dim=1)
    assert torch.allclose(operator.dense(), single, rtol=0, atol=1e-14)
    assert not engine(problem).one_by_one


def test_columns_go_one_by_one_where_they_cannot_go_together():
    problem = _untwistable()
    H = Hessian(problem)
    V = torch.randn(problem.size, 5, dtype=torch.float64)
    together = H @ V
    assert engine(problem).one_by_one
    assert torch.equal(together, torch.stack([H @ column.contiguous() for column in V.T], dim=1))


def test_columns_that_come_out_wrong_together_are_made_again(monkeypatch):
    case = make("ReLU MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    H, V = Hessian(problem), torch.eye(problem.size, dtype=torch.float64)
    right = H @ V
    monkeypatch.setattr(products, "_together", lambda operator, V, done: 1.001 * right)
    assert torch.allclose(H @ V, right, rtol=1e-12, atol=1e-15)
    assert engine(problem).one_by_one
