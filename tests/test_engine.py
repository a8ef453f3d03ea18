"""Products from kept graphs against streamed ones, in networks that could tell them apart."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from tests.problems import make
from wellcond.curvature import EmpiricalFisher, GaussNewton, Hessian
from wellcond.curvature.engine.keeping import Kept, engine_of
from wellcond.parameters import flatten, unflatten
from wellcond.problem import Problem
from wellcond.problem.graphs import graph_bytes
from wellcond.problem.problem import ClosedError

KINDS = [Hessian, GaussNewton, EmpiricalFisher]
STREAMED = "products are streamed"  # a warning


def vector(problem: Problem) -> torch.Tensor:
    return torch.randn(problem.size, dtype=problem.dtype, generator=torch.Generator().manual_seed(1))


def kept(problem: Problem) -> Kept:
    """What is kept in the open block."""
    return engine_of(problem).kept(problem)


def by_hand(problem: Problem, v: torch.Tensor) -> torch.Tensor:
    """The Hessian's product by two calls of torch."""
    model, (x, y) = copy.deepcopy(problem.model), problem.batches[0]
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(
        problem.loss_fn(model(x.clone()), y), parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return flatten(torch.autograd.grad(gradient, parameters, unflatten(v, parameters), materialize_grads=True))


def agrees(problem: Problem, kinds=(Hessian, GaussNewton), is_kept: bool = True) -> None:
    """Kept products are the streamed ones, without a warning, and the Hessian's are those by hand."""
    v = vector(problem)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", STREAMED)
        for kind in kinds:
            expected = kind(problem) @ v
            with problem:
                found = [kind(problem) @ v for _ in range(3)]
                assert bool(kept(problem).ways) == is_kept
            for product in found:
                assert torch.allclose(product, expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))
    assert torch.allclose(Hessian(problem) @ v, by_hand(problem, v), rtol=1e-10, atol=1e-13)


# -- networks that are more than their layers ----------------------------------------------------------------------


class Reading(nn.Module):
    """A network that is more than its layers, in ways that a derivative of its own could get wrong."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(3, 5), nn.Linear(5, 3)

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "takes a step of its own":
            step = torch.autograd.grad(self.layers(x).square().mean(), self.a.weight, create_graph=True)[0]
            return self.b(torch.tanh(nn.functional.linear(x, self.a.weight - 0.3 * step, self.a.bias)))
        if self.how == "is a gradient by its input":
            x = x.clone().requires_grad_()
            return torch.autograd.grad(self.layers(x).square().sum(), x, create_graph=True)[0]
        if self.how == "uses its weights elsewhere too":
            return self.layers(x) * self.a.weight.pow(3).sum() + self.a(x).mean() * self.a.bias[:3]
        if self.how == "writes into outputs":
            return self.b(self.a(x[:, None]).tanh_()).mul_(2)[:, 0].add_(x)
        if self.how == "has a hook on its weight":
            self.a.weight.register_hook(lambda g: g.clamp(-0.01, 0.01) * g)
            return self.layers(x)
        if self.how == "transforms with torch.func":
            return torch.func.vmap(torch.func.grad(lambda row: self.layers(row[None]).sum()))(x)
        if self.how == "is checkpointed":
            return checkpoint(self.layers, checkpoint(self.layers, x, use_reentrant=False), use_reentrant=False)
        if self.how == "names its arguments":
            h = torch.tanh(nn.functional.linear(input=x, weight=self.a.weight, bias=self.a.bias))
            return nn.functional.linear(h, bias=None, weight=self.b.weight)
        if self.how == "takes single examples":
            return torch.stack([self.layers(row) for row in x])
        raise AssertionError(self.how)


WAYS = [
    "takes a step of its own",
    "is a gradient by its input",
    "uses its weights elsewhere too",
    "writes into outputs",
    "has a hook on its weight",
    "transforms with torch.func",
    "is checkpointed",
    "names its arguments",
    "takes single examples",
]


@pytest.mark.parametrize("how", WAYS)
def test_networks_that_are_more_than_their_layers(how):
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    # torch.func does not say how much it saves
    agrees(Problem(Reading(how).double(), nn.MSELoss(), data), is_kept=how != "transforms with torch.func")


def test_operators_are_copied_and_pickled():
    case = make("tanh MLP")
    operator = Hessian(Problem(case.model, case.loss_fn, case.data))
    v = vector(operator.problem)
    for twin in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(twin @ v, operator @ v)


# -- products in which nothing but derivatives runs ------------------------------------------------------------------


class Noisy(torch.autograd.Function):
    """A user's own, whose derivative is a random one."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return d * torch.rand_like(d)


class Own(nn.Module):
    """A network that runs something of its own in a backward pass, or not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.seen = how, []
        self.a, self.norm, self.b = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        if how == "a module's hook":
            self.a.register_full_backward_hook(self.see)
        if how == "a module's hook of the old kind":
            self.a.register_backward_hook(self.see)

    def see(self, *_: object) -> None:
        self.seen.append(torch.rand(()))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.a(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "a checkpoint":
            return self.b(checkpoint(self.body, x, use_reentrant=False))
        h = self.body(x)
        if self.how == "a function":
            h = Noisy.apply(h)
        if self.how == "a hook":
            h.register_hook(self.see)
        if self.how == "a node's hook":
            h.grad_fn.register_prehook(self.see)
        return self.b(h).tanh()


OWN = ["a checkpoint", "a function", "a hook", "a node's hook", "a module's hook", "a module's hook of the old kind"]


def derivatives_alone(problem: Problem) -> bool:
    (way,) = kept(problem).ways.values()
    return way.alone


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
@pytest.mark.parametrize("how", [*OWN, "nothing"])
def test_what_a_network_runs_in_a_backward_pass_leaves_no_trace(how, kind):
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    problem = Problem(Own(how).double(), nn.MSELoss(), data)
    operator, v = kind(problem), vector(problem)
    before = copy.deepcopy(problem.model.state_dict()), torch.get_rng_state()
    with problem, warnings.catch_warnings():
        warnings.filterwarnings("ignore" if how == "a function" else "error", STREAMED)
        products = [operator @ v for _ in range(4)]
        if how != "a function":
            assert derivatives_alone(problem) == (how == "nothing")
    assert all(torch.equal(product, products[0]) for product in products)
    assert all(torch.equal(x, before[0][name]) for name, x in problem.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[1])
    assert problem.model.seen == []


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_kept_graph_gives_something_else_products_are_streamed_with_one_warning(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), Random(), nn.Tanh(), nn.Linear(5, 3)).double()
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    problem = Problem(model, nn.MSELoss(), data)
    operator, v = kind(problem), vector(problem)
    expected = operator @ v
    with problem, pytest.warns(UserWarning, match=STREAMED):
        first = operator @ v
    with problem, warnings.catch_warnings():
        warnings.filterwarnings("error", STREAMED)
        later = [operator @ v for _ in range(3)]
        assert not kept(problem).ways
    assert all(torch.equal(product, expected) for product in (first, *later))


class Random(nn.Module):
    def forward(self, x):
        return Noisy.apply(x)


def test_the_first_kept_product_is_checked_once(monkeypatch):
    case = make("uneven batches")
    problem = Problem(case.model, case.loss_fn, case.data)
    operator, v, made = Hessian(problem), vector(problem), []
    multiply = Hessian.batch_product

    def counted(self, *args):
        made.append(self.key)
        return multiply(self, *args)

    monkeypatch.setattr(Hessian, "batch_product", counted)
    for blocks in (1, 2):
        with problem:
            operator @ v, operator @ v
        assert len(made) == blocks * 2 * len(problem.batches) + 1


def test_what_is_known_of_a_problem_goes_with_it():
    case = make("tanh MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    with problem:
        Hessian(problem) @ vector(problem)
    known = weakref.ref(engine_of(problem)), weakref.ref(problem)
    del problem
    gc.collect()
    assert all(x() is None for x in known)


def test_a_hook_on_all_modules_is_seen():
    case = make("ReLU MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    handle = nn.modules.module.register_module_full_backward_hook(lambda *_: None)
    try:
        with problem:
            Hessian(problem) @ vector(problem)
            assert not derivatives_alone(problem)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_the_caller_do_not_reach_a_kept_product(kind):
    case = make("ReLU MLP")
    problem = Problem(
        case.model.float(), case.loss_fn, tuple(x.float() if x.is_floating_point() else x for x in case.data)
    )
    operator, v = kind(problem), vector(problem)
    with problem:
        expected = [operator @ v for _ in range(2)][1]
        assert derivatives_alone(problem)
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            product = operator @ v
        threads = torch.get_num_threads()
        problem.closed = True
        with pytest.raises(ClosedError):
            operator @ v
    assert torch.equal(product, expected)
    assert torch.get_num_threads() == threads


def test_a_block_is_differentiated_alone_too():
    case = make("ReLU MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    block = Hessian(problem).block("0.*")
    with problem:
        products = [block @ torch.ones(block.size, dtype=problem.dtype) for _ in range(3)]
        assert derivatives_alone(problem)
    assert all(torch.equal(product, products[0]) for product in products)


class Equilibrium(nn.Module):
    """z = f(z, x), differentiated by solving the linear system at z in a hook, as in deep equilibrium models."""

    def __init__(self) -> None:
        super().__init__()
        self.of_z, self.of_x = nn.Linear(4, 4), nn.Linear(3, 4)
        nn.init.normal_(self.of_z.weight, std=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.new_zeros(len(x), 4)
        with torch.no_grad():
            for _ in range(100):
                z = torch.tanh(self.of_z(z) + self.of_x(x))
        start = z.clone().requires_grad_()
        again = torch.tanh(self.of_z(start) + self.of_x(x))
        z = torch.tanh(self.of_z(z) + self.of_x(x))

        def solved(d: torch.Tensor) -> torch.Tensor:
            y = d
            for _ in range(100):
                y = torch.autograd.grad(again, start, y, create_graph=True)[0] + d
            return y

        z.register_hook(solved)
        return z


class Remade(torch.autograd.Function):
    """tanh(xWᵀ + b), evaluated again for its derivative, which is then one more graph."""

    @staticmethod
    def forward(ctx, x, W, b):
        ctx.save_for_backward(x, W, b)
        return torch.tanh(nn.functional.linear(x, W, b))

    @staticmethod
    def backward(ctx, d):
        with torch.enable_grad():
            y = torch.tanh(nn.functional.linear(*ctx.saved_tensors))
            return torch.autograd.grad(y, ctx.saved_tensors, d, create_graph=True)


class WithRemade(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 3), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.third(Remade.apply(self.first(x), self.second.weight, self.second.bias))


def test_a_function_whose_derivative_has_a_graph_of_its_own():
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    problem = Problem(WithRemade().double(), nn.MSELoss(), data)
    assert not (EmpiricalFisher(problem) @ vector(problem)).requires_grad
    agrees(problem, KINDS)


class Forward(nn.Module):
    """The derivative of a network along one direction of its input, in forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2), nn.Softplus())

    def forward(self, x):
        with forward_ad.dual_level():
            y = self.body(forward_ad.make_dual(x, torch.ones_like(x)))
            return forward_ad.unpack_dual(y).tangent


def test_forward_mode_within_a_network():
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    agrees(Problem(Forward().double(), nn.MSELoss(), data))


class Graph(nn.Module):
    """A layer of a graph network: A X Wᵀ, with a sparse A and a weight inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.A = torch.randn(6, 6, dtype=torch.float64).relu().to_sparse()

    def forward(self, x):
        return torch.sparse.mm(self.A, torch.tanh(self.layer(x)))


def test_sparse_tensors_within_a_network():
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    model = Graph().double()
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    held = graph_bytes(lambda: torch.sparse.mm(model.A, x))
    assert 0 < held <= 8 * (model.A._nnz() + x.numel())
    agrees(Problem(model, nn.MSELoss(), data))


def test_a_mode_of_the_users_is_asked_first():
    class Cubed(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is nn.functional.relu:
                return args[0] ** 3
            return function(*args, **(kwargs or {}))

    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    layers = [nn.Linear(3, 5).double(), nn.ReLU(), nn.Linear(5, 2).double()]
    replaced = Problem(nn.Sequential(*layers), nn.MSELoss(), data)
    written = Problem(nn.Sequential(layers[0], Cube(), layers[2]), nn.MSELoss(), data)
    with Cubed():
        product = Hessian(replaced) @ vector(replaced)
    assert torch.allclose(product, Hessian(written) @ vector(written), rtol=1e-12)


class Cube(nn.Module):
    def forward(self, x):
        return x**3


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_threads_may_share_what_is_kept(kind):
    case = make("ReLU MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    operator = kind(problem)
    vectors = [torch.randn(problem.size, dtype=problem.dtype) for _ in range(4)]
    with problem:
        expected = [operator @ v for v in vectors]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda v: [operator.damped(0.0) @ v for _ in range(50)], vectors))
    assert all(torch.equal(x, y) for products, y in zip(found, expected, strict=True) for x in products)


def test_a_gradient_taken_within_a_backward_pass_is_no_part_of_the_product():
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    problem = Problem(Equilibrium().double(), nn.MSELoss(), data)
    agrees(problem)
