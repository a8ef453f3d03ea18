"""Linear and convolutional layers with derivatives of their own, against torch's."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from wellcond.problem.kept import graph_nodes
from wellcond.problem.sizes import graph_bytes

from tests.problems import PROBLEMS, make
from wellcond.curvature import EmpiricalFisher, GaussNewton, Hessian, bilinear
from wellcond.problem import Problem
from wellcond.problem.problem import ClosedError

KINDS = [Hessian, GaussNewton, EmpiricalFisher]


@pytest.fixture(autouse=True)
def layers_of_any_size(monkeypatch):
    monkeypatch.setattr(bilinear, "WORTH", 0)
    monkeypatch.setattr(bilinear, "WORTH_RELU", 0)


def torchs_own(monkeypatch) -> None:
    monkeypatch.setattr(bilinear, "_possible", lambda *_: False)


def vector(problem: Problem) -> torch.Tensor:
    return torch.randn(problem.size, dtype=problem.dtype, generator=torch.Generator().manual_seed(1))


def own_layers(operator) -> int:
    """How many layers of the network have derivatives of their own."""
    with operator.problem.evaluating():
        with operator._layers:
            loss = operator.problem.batch_loss(0)
        return sum(node.name() == "_LayerBackward" for node in graph_nodes(loss))


def agrees_with_torchs(monkeypatch, problem: Problem, kinds=(Hessian, GaussNewton)) -> None:
    v = vector(problem)
    found = []
    for kind in kinds:
        found.append(kind(problem) @ v)
        with problem:
            found += [kind(problem) @ v for _ in range(2)]
    torchs_own(monkeypatch)
    for i, kind in enumerate(kinds):
        expected = kind(problem) @ v
        for product in found[3 * i : 3 * i + 3]:
            assert torch.allclose(product, expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("name", PROBLEMS)
def test_products_are_those_of_torchs_own_layers(name, monkeypatch):
    case = make(name)
    problem = Problem(case.model, case.loss_fn, case.data)
    assert own_layers(Hessian(problem)) > 0
    agrees_with_torchs(monkeypatch, problem, KINDS[:2] if name == "batch norm" else KINDS)


# -- layers ----------------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "plain": (lambda: nn.Conv2d(4, 6, 3), True),
    "no bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), True),
    "strided, padded, dilated": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), True),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), True),
    "padded with a mirror": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), True),
    "padded to the same size": (lambda: nn.Conv2d(4, 6, 3, padding="same"), False),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_every_kind(name, monkeypatch):
    make_layer, own = CONVOLUTIONS[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), make_layer(), nn.Tanh(), nn.Flatten()).double()
    model.append(nn.LazyLinear(3).double())
    X, y = torch.randn(5, 3, 7, 7, dtype=torch.float64), torch.randint(3, (5,))
    model(X)
    problem = Problem(model, nn.CrossEntropyLoss(), (X, y))
    assert own_layers(Hessian(problem)) == 2 + own
    agrees_with_torchs(monkeypatch, problem, KINDS)


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_other_dimensions(dims, monkeypatch):
    torch.manual_seed(0)
    convolution = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    model = nn.Sequential(convolution(2, 4, 3), nn.Tanh(), convolution(4, 2, 2, stride=2), nn.Flatten()).double()
    X = torch.randn(5, 2, *[6] * dims, dtype=torch.float64)
    problem = Problem(model, nn.MSELoss(), (X, torch.randn_like(model(X).detach())))
    assert own_layers(Hessian(problem)) == 2
    agrees_with_torchs(monkeypatch, problem)


class Attending(nn.Module):
    """Attention of tokens to themselves, or to their images, under a mask and with its weights in the output."""

    def __init__(self, across: bool, **options) -> None:
        super().__init__()
        self.attention, self.across = nn.MultiheadAttention(4, 2, batch_first=True, **options), across
        self.memory, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = torch.tanh(self.memory(x)) if self.across else x
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        y, weights = self.attention(x, memory, memory, attn_mask=mask)
        return self.out(y.mean(1)) + weights.square().mean((1, 2))[:, None]


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"dropout": 0.3}, {"kdim": 4, "vdim": 4, "add_zero_attn": True}]
)
def test_attention(across, options, monkeypatch):
    torch.manual_seed(0)
    model = Attending(across, **options).double()
    problem = Problem(model, nn.CrossEntropyLoss(), (torch.randn(6, 5, 4).double(), torch.randint(3, (6,))))
    agrees_with_torchs(monkeypatch, problem, KINDS)


def test_a_transformer(monkeypatch):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.2, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(20, 3))
    problem = Problem(model.double(), nn.CrossEntropyLoss(), (torch.randn(6, 5, 4).double(), torch.randint(3, (6,))))
    assert own_layers(Hessian(problem)) == 2 * 4 + 1
    agrees_with_torchs(monkeypatch, problem)


# -- what networks do with them --------------------------------------------------------------------------------------


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
def test_networks_that_are_more_than_their_layers(how, monkeypatch):
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    agrees_with_torchs(monkeypatch, Problem(Reading(how).double(), nn.MSELoss(), data))


def test_under_autocast_of_its_own_a_layer_is_torchs():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.linear(x).float()

    torch.manual_seed(0)
    problem = Problem(Half(), nn.MSELoss(), (torch.randn(6, 3), torch.randn(6, 3)))
    assert own_layers(Hessian(problem)) == 0
    assert torch.isfinite(Hessian(problem) @ vector(problem)).all()


def test_frozen_layers_and_blocks():
    case = make("ReLU MLP")
    case.model[0].bias.requires_grad_(False)
    problem = Problem(case.model, case.loss_fn, case.data)
    assert own_layers(Hessian(problem)) == 1
    block = Hessian(problem).block("2.*")
    assert own_layers(block) == 0
    assert torch.allclose(block.dense(), Hessian(problem).dense()[-block.size :, -block.size :], atol=1e-13)


# -- what it is for --------------------------------------------------------------------------------------------------


class MatrixProducts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count += name in ("mm", "addmm", "addmm_", "convolution")
        self.count += sum(args[-1][:2]) if name == "convolution_backward" else 0
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (4,)),
        (
            lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Conv1d(3, 3, 2), nn.Tanh(), nn.Conv1d(3, 3, 2)),
            (2, 6),
        ),
    ],
)
def test_no_product_is_made_that_nobody_needs(model, shape, monkeypatch):
    """Of every layer: its output; by the input and by the weight of each of the terms that the vector meets."""
    torch.manual_seed(0)
    network = model().double()
    X = torch.randn(5, *shape, dtype=torch.float64)
    problem = Problem(network, lambda o, t: torch.cosh(o - t).mean(), (X, torch.zeros_like(network(X).detach())))
    problem.loss()
    for kind, first, inner, spared in ((Hessian, 3, 8, 1), (GaussNewton, 3, 6, 1)):
        operator, v = kind(problem), vector(problem)
        with MatrixProducts() as made:
            operator @ v
        assert made.count == first + 2 * inner
        with monkeypatch.context() as patch:
            torchs_own(patch)
            with MatrixProducts() as torchs:
                operator @ v
        assert torchs.count >= made.count + 3 * spared


def test_operators_are_copied_and_pickled():
    case = make("tanh MLP")
    operator = Hessian(Problem(case.model, case.loss_fn, case.data))
    v = vector(operator.problem)
    for twin in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(twin @ v, operator @ v)


def test_small_linear_layers_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(bilinear, "WORTH", 24 * 4 * 6 + 1)
    case = make("tanh MLP")
    assert own_layers(Hessian(Problem(case.model, case.loss_fn, case.data))) == 0
    monkeypatch.setattr(bilinear, "WORTH", 24 * 4 * 6)
    assert own_layers(Hessian(Problem(case.model, case.loss_fn, case.data))) == 1


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
    (graph,) = problem._kept.graphs.values()
    return graph.alone


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
@pytest.mark.parametrize("how", [*OWN, "nothing"])
def test_what_a_network_runs_in_a_backward_pass_leaves_no_trace(how, kind):
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    problem = Problem(Own(how).double(), nn.MSELoss(), data)
    operator, v = kind(problem), vector(problem)
    before = copy.deepcopy(problem.model.state_dict()), torch.get_rng_state()
    with problem:
        products = [operator @ v for _ in range(4)]
        assert derivatives_alone(problem) == (how == "nothing")
    if how == "a function":  # the graph is made once, so the second derivative too has a state of its own
        products = products[1:]
    assert all(torch.equal(product, products[0]) for product in products)
    assert all(torch.equal(x, before[0][name]) for name, x in problem.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[1])
    assert problem.model.seen == []


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


def test_a_function_whose_derivative_has_a_graph_of_its_own(monkeypatch):
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    problem = Problem(WithRemade().double(), nn.MSELoss(), data)
    assert not (EmpiricalFisher(problem) @ vector(problem)).requires_grad
    agrees_with_torchs(monkeypatch, problem, KINDS)


class Forward(nn.Module):
    """The derivative of a network along one direction of its input, in forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2), nn.Softplus())

    def forward(self, x):
        with forward_ad.dual_level():
            y = self.body(forward_ad.make_dual(x, torch.ones_like(x)))
            return forward_ad.unpack_dual(y).tangent


def test_forward_mode_within_a_network(monkeypatch):
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    agrees_with_torchs(monkeypatch, Problem(Forward().double(), nn.MSELoss(), data))


class Graph(nn.Module):
    """A layer of a graph network: A X Wᵀ, with a sparse A and a weight inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.A = torch.randn(6, 6, dtype=torch.float64).relu().to_sparse()

    def forward(self, x):
        return torch.sparse.mm(self.A, torch.tanh(self.layer(x)))


def test_sparse_tensors_within_a_network(monkeypatch):
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    model = Graph().double()
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    held = graph_bytes(lambda: torch.sparse.mm(model.A, x))
    assert 0 < held <= 8 * (model.A._nnz() + x.numel())
    agrees_with_torchs(monkeypatch, Problem(model, nn.MSELoss(), data))


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


def test_a_gradient_taken_within_a_backward_pass_is_no_part_of_the_product(monkeypatch):
    torch.manual_seed(0)
    data = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    problem = Problem(Equilibrium().double(), nn.MSELoss(), data)
    agrees_with_torchs(monkeypatch, problem)
