"""Compiled products against eager ones."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.problems import PROBLEMS, make
from wellcond import private_torch
from wellcond.curvature import EmpiricalFisher, GaussNewton, Hessian
from wellcond.curvature.engine.compiled import FromConstants, FromInputs
from wellcond.curvature.engine.keeping import MOST_PROGRAMS, Kept, engine_of
from wellcond.problem import Problem


@pytest.fixture
def uncompiled(monkeypatch):
    """Traced, divided and held against the eager product as always, but run without the compiler (seconds each)."""
    monkeypatch.setattr(private_torch, "compiled", lambda program, *_: program)


def pair(name: str, **settings) -> tuple[Problem, Problem]:
    case = make(name)
    eager = Problem(case.model, case.loss_fn, case.data)
    return eager, Problem(case.model, case.loss_fn, case.data, compile=True, **settings)


def vector(problem: Problem, seed: int = 0) -> torch.Tensor:
    return torch.randn(problem.size, dtype=problem.dtype, generator=torch.Generator().manual_seed(seed))


def programs(operator) -> list:
    return list(engine_of(operator.problem)._programs.get(operator.key, {}).values())


def kept(problem: Problem) -> Kept:
    """What is kept in the open block."""
    return engine_of(problem).kept(problem)


def trusted(operator, *kinds: type) -> set[int]:
    """Batches whose compiled product was held against the streamed one in this block, and agreed."""
    kinds = kinds or (FromConstants, FromInputs)
    return {index for (_, index), way in kept(operator.problem).ways.items() if isinstance(way, kinds)}


def close(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.allclose(x, y, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("kind", [Hessian, GaussNewton, EmpiricalFisher])
def test_traced_products_are_the_eager_ones(uncompiled, name, kind):
    if (name, kind) == ("batch norm", EmpiricalFisher):
        pytest.skip("no gradient of one example")
    eager, traced = pair(name)
    A, B = kind(eager), kind(traced)
    before = [x.clone() for x in traced.model.state_dict().values()]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for seed in (0, 1):
            assert close(B @ vector(traced, seed), A @ vector(eager, seed))
        with traced:
            for seed in (2, 3):
                assert close(B @ vector(traced, seed), A @ vector(eager, seed))
            assert trusted(B) == set(range(len(traced.batches)))
    assert kept(traced) is None
    assert not engine_of(traced)._blocks
    assert all(torch.equal(x, y) for x, y in zip(before, traced.model.state_dict().values(), strict=True))


def test_the_compiler_gives_the_same():
    limit = sys.getrecursionlimit()
    counters.clear()
    eager, fast = pair("uneven batches")
    A, B = Hessian(eager), Hessian(fast)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with fast:
            for seed in (1, 2):
                assert close(B @ vector(fast, seed), A @ vector(eager, seed))
            assert trusted(B) == {0, 1, 2}
        fast.memory_limit = 0
        with fast:
            assert close(B @ vector(fast), A @ vector(eager))
            assert trusted(B) == {0, 1, 2}
    assert sys.getrecursionlimit() == limit
    assert not counters["inductor"]["fxgraph_cache_bypass"]  # the compiler's cache on disk is asked


def test_vectors_and_parameters_may_lie_in_memory_as_they_like():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
    data = torch.randn(5, 3, 6, 6, dtype=torch.float64), torch.randint(2, (5,))
    eager, fast = (Problem(model, nn.CrossEntropyLoss(), data, compile=compile) for compile in (False, True))
    V = torch.randn(eager.size, 2, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):
            expected = Hessian(eager) @ V
            with fast:
                for _ in range(2):
                    assert close(Hessian(fast).matvec(V[:, 0]), expected[:, 0])
                assert close(Hessian(fast).matvec(V[:, 1].contiguous()), expected[:, 1])
                with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
                    assert close(Hessian(fast).matvec(V[:, 1]), expected[:, 1])
                assert trusted(Hessian(fast)) == {0}
            model.to(memory_format=torch.channels_last)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return torch.tanh(self.scale * x)


def test_a_buffer_may_change_its_dtype():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3).double(), Scaled())
    data = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    eager, fast = (Problem(model, nn.MSELoss(), data, compile=compile) for compile in (False, True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for dtype in (torch.float32, torch.float64, torch.float32):
            model[1].to(dtype)
            with fast:
                for seed in (0, 1):
                    assert close(Hessian(fast) @ vector(fast, seed), Hessian(eager) @ vector(eager, seed))


def test_products_follow_the_parameters(uncompiled):
    eager, traced = pair("tanh MLP")
    A, B = Hessian(eager), Hessian(traced)
    for limit, factor in ((2**30, 1.5), (0, 0.5), (2**30, 0.0)):
        traced.memory_limit = limit
        with traced:
            for seed in (0, 1):
                assert close(B @ vector(traced, seed), A @ vector(eager, seed))
            assert trusted(B) == {0}
        with torch.no_grad():
            traced.parameters[0].mul_(factor)
    assert len(programs(B)) == 1


def test_single_products_are_not_compiled(uncompiled):
    eager, traced = pair("tanh MLP")
    assert close(Hessian(traced) @ vector(traced), Hessian(eager) @ vector(eager))
    assert not programs(Hessian(traced))


class Tempered(nn.Module):
    """A Python number in it, that no input shows."""

    def __init__(self):
        super().__init__()
        self.linear, self.temperature = nn.Linear(3, 2).double(), 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(x)) / self.temperature


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_what_changed_in_the_network_beside_its_tensors_is_noticed(uncompiled, memory_limit):
    torch.manual_seed(0)
    model = Tempered()
    data = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    eager = Problem(model, nn.MSELoss(), data)
    traced = Problem(model, nn.MSELoss(), data, compile=True, memory_limit=memory_limit)
    A, B = Hessian(eager), Hessian(traced)
    with traced:
        assert close(B @ vector(traced), A @ vector(eager))
    model.temperature = 0.5
    with traced:
        with pytest.warns(UserWarning, match="or has changed"):
            assert close(B @ vector(traced), A @ vector(eager))
        assert close(B @ vector(traced, 1), A @ vector(eager, 1))


def test_a_loss_that_is_not_finite_is_refused_as_without(uncompiled):
    _, traced = pair("tanh MLP")
    B = Hessian(traced)
    with traced:
        B @ vector(traced)
    with torch.no_grad():
        traced.parameters[0].fill_(torch.nan)
    with traced, pytest.raises(ValueError, match="the loss of batch 0 is nan"):
        B @ vector(traced)


def test_blocks_damping_and_preconditioning_are_compiled_too(uncompiled):
    eager, traced = pair("ReLU MLP")
    A, B = Hessian(eager).block("0.*") + 0.1, Hessian(traced).block("0.*") + 0.1
    v = torch.ones(A.size, dtype=torch.float64)
    with traced:
        assert close(B @ v, A @ v)
        assert trusted(B) == {0}


def test_a_random_network_is_compiled_only_where_its_numbers_are_kept(uncompiled):
    eager, traced = pair("dropout")
    A, B = Hessian(eager), Hessian(traced)
    with traced:
        assert close(B @ vector(traced), A @ vector(eager))
        assert trusted(B) == {0}
    (program,) = programs(B)
    assert program.random
    traced.memory_limit = 0
    with traced:
        assert close(B @ vector(traced), A @ vector(eager))
        assert not trusted(B)  # nothing compiled was run


def test_constants_are_kept_within_the_memory_limit(uncompiled):
    eager, traced = pair("uneven batches")
    B = Hessian(traced)
    with traced:
        B @ vector(traced)
    sizes = [p.bytes for p in programs(B)]
    assert all(size > 0 for size in sizes)
    traced.memory_limit = sizes[0] + sizes[2]
    with traced:
        for seed in (0, 1):
            assert close(B @ vector(traced, seed), Hessian(eager) @ vector(eager, seed))
        assert trusted(B, FromConstants) == {0, 2}
        assert trusted(B) == {0, 1, 2}


class Turning(nn.Module):
    """Its way depends on values in a way that tracing sees (`if`) or does not (numpy)."""

    def __init__(self, hidden: bool):
        super().__init__()
        self.linear, self.hidden = nn.Linear(3, 2).double(), hidden

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.hidden:
            return torch.tanh(self.linear(x)) * float(x.detach().numpy().mean())
        return torch.tanh(self.linear(x)) if x.sum() > 0 else self.linear(x) ** 3


@pytest.mark.parametrize(("hidden", "words"), [(False, "can't be traced"), (True, "depends on values")])
def test_a_network_whose_way_depends_on_values_is_multiplied_eagerly_with_a_warning(uncompiled, hidden, words):
    torch.manual_seed(0)
    model = Turning(hidden)
    data = [(torch.randn(5, 3, dtype=torch.float64) + s, torch.randn(5, 2, dtype=torch.float64)) for s in (1, -1)]
    eager, traced = Problem(model, nn.MSELoss(), data), Problem(model, nn.MSELoss(), data, compile=True)
    with traced:
        with pytest.warns(UserWarning, match=words):
            assert close(Hessian(traced) @ vector(traced), Hessian(eager) @ vector(eager))
        for seed in (1, 2):
            assert close(Hessian(traced) @ vector(traced, seed), Hessian(eager) @ vector(eager, seed))


def test_a_program_that_does_not_compile_is_replaced_by_the_eager_product(monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(private_torch, "compiled", broken)
    eager, traced = pair("tanh MLP")
    with traced:
        with pytest.warns(UserWarning, match=r"can't be compiled \(RuntimeError: no compiler\)"):
            assert close(Hessian(traced) @ vector(traced), Hessian(eager) @ vector(eager))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert close(Hessian(traced) @ vector(traced, 1), Hessian(eager) @ vector(eager, 1))


def test_what_cannot_be_measured_is_refused_as_without():
    case = make("batch norm")
    problem = Problem(case.model, case.loss_fn, case.data, compile=True)
    with problem, pytest.raises(ValueError, match="batch norm in train mode"):
        EmpiricalFisher(problem) @ vector(problem)


def test_batches_of_many_shapes_are_not_all_compiled(uncompiled):
    case = make("tanh MLP")
    X, y = case.data
    batches = [(X[:k], y[:k]) for k in range(1, MOST_PROGRAMS + 3)]
    eager, traced = Problem(case.model, case.loss_fn, batches), Problem(case.model, case.loss_fn, batches, compile=True)
    with traced:
        assert close(Hessian(traced) @ vector(traced), Hessian(eager) @ vector(eager))
    assert sum(p is not None for p in programs(Hessian(traced))) == MOST_PROGRAMS
