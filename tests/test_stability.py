"""The stability bounds are sharp: 2 % below they converge, 2 % above they diverge (theory, section 2.3)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tests.problems import make, train
from wellcond.curvature import Hessian
from wellcond.linalg import eigenvalues
from wellcond.preconditioners import preconditioner_of
from wellcond.problem import Problem
from wellcond.stability.edge import edge_ratio, suggest_learning_rate

LAMBDA = 3.0


class Quadratic(nn.Module):
    """½ pᵀ diag(λ) p as a network of one example."""

    def __init__(self, top: float = LAMBDA):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
        self.top = top

    def forward(self, x):
        return (0.5 * torch.tensor([self.top, 0.1], dtype=torch.float64) * self.p**2).sum() * x


def problem_of(model: nn.Module) -> Problem:
    one = torch.ones(1, dtype=torch.float64)
    return Problem(model, lambda output, target: output.sum(), (one, one))


def runs_away(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1500) -> bool:
    """Whether the steep coordinate grows a thousandfold, more than any transient; it starts so small that its
    gradients leave a second moment as it is until then. Otherwise it must have gone down."""
    start = 1e-6
    with torch.no_grad():
        model.p.fill_(start)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, dtype=torch.float64)).sum().backward()
        optimizer.step()
        if float(model.p[0].detach().abs()) > 1e3 * start:
            return True
    assert float(model.p[0].detach().abs()) < start
    return False


SGDS = {
    "plain": {},
    "heavy ball": {"momentum": 0.9},
    "dampened": {"momentum": 0.8, "dampening": 0.5},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
}


@pytest.mark.parametrize("options", SGDS.values(), ids=SGDS)
@pytest.mark.parametrize("relative", [0.98, 1.02])
def test_sgd(options, relative):
    model = Quadratic()
    probe = torch.optim.SGD(model.parameters(), lr=1.0, **options)
    allowed = edge_ratio(problem_of(model), probe).allowed.value
    optimizer = torch.optim.SGD(model.parameters(), lr=allowed * relative, **options)
    assert edge_ratio(problem_of(model), optimizer).ratio.value == pytest.approx(relative, rel=1e-9)
    assert runs_away(model, optimizer) == (relative > 1)


# A second moment that does not move: with β₂ or α this near to 1, P stays what the first steps left.
FROZEN = 1 - 1e-13


def frozen_adam(model, lr, beta1):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(beta1, FROZEN), eps=0.0)
    for p in model.parameters():
        v = torch.full_like(p, 4.0) * (1 - FROZEN**1e9)  # v̂ = 4 after a billion steps: P² = 1/2
        optimizer.state[p] = {"step": torch.tensor(1e9), "exp_avg": torch.zeros_like(p), "exp_avg_sq": v}
    return optimizer


def frozen_rmsprop(model, lr, momentum):
    optimizer = torch.optim.RMSprop(model.parameters(), lr=lr, alpha=1.0, eps=0.0, momentum=momentum)
    for p in model.parameters():
        state = {"step": torch.tensor(9.0), "square_avg": torch.full_like(p, 4.0)}
        optimizer.state[p] = state | ({"momentum_buffer": torch.zeros_like(p)} if momentum else {})
    return optimizer


def frozen_adagrad(model, lr, _):
    optimizer = torch.optim.Adagrad(model.parameters(), lr=lr, initial_accumulator_value=4e12, eps=0.0)
    for p in model.parameters():
        optimizer.state[p]["step"] = torch.tensor(1.0)
    return optimizer


def frozen_nadam(model, lr, beta1):
    optimizer = torch.optim.NAdam(model.parameters(), lr=lr, betas=(beta1, FROZEN), eps=0.0)
    for p in model.parameters():
        v = torch.full_like(p, 4.0) * (1 - FROZEN**1e9)
        state = {"step": torch.tensor(1e9), "mu_product": torch.tensor(0.0), "exp_avg": torch.zeros_like(p)}
        optimizer.state[p] = state | {"exp_avg_sq": v}
    return optimizer


def frozen_radam(model, lr, beta1):
    # v̂ = 4 r_t²: P² = r_t/√v̂ = 1/2.
    optimizer = torch.optim.RAdam(model.parameters(), lr=lr, betas=(beta1, FROZEN), eps=0.0)
    limit, t = 2 / (1 - FROZEN) - 1, 1e9
    rho = limit - 2 * t * FROZEN**t / (1 - FROZEN**t)
    squared = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
    for p in model.parameters():
        v = torch.full_like(p, 4.0) * (1 - FROZEN**t) * squared
        optimizer.state[p] = {"step": torch.tensor(t), "exp_avg": torch.zeros_like(p), "exp_avg_sq": v}
    return optimizer


def frozen_adamax(model, lr, beta1):
    optimizer = torch.optim.Adamax(model.parameters(), lr=lr, betas=(beta1, FROZEN), eps=0.0)
    for p in model.parameters():
        state = {"step": torch.tensor(1e9), "exp_avg": torch.zeros_like(p), "exp_inf": torch.full_like(p, 2.0)}
        optimizer.state[p] = state
    return optimizer


ADAPTIVE = {
    "Adam": (frozen_adam, 0.9, 38.0),
    "Adam β₁ = 0.5": (frozen_adam, 0.5, 6.0),
    "NAdam": (frozen_nadam, 0.9, 3.8 / 0.28),
    "RAdam": (frozen_radam, 0.9, 38.0),
    "Adamax": (frozen_adamax, 0.9, 38.0),
    "RMSprop": (frozen_rmsprop, 0.0, 2.0),
    "RMSprop with momentum": (frozen_rmsprop, 0.9, 3.8),
    "Adagrad": (frozen_adagrad, 0.0, 2.0),
}


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("relative", [0.98, 1.02])
def test_adaptive_methods_with_a_frozen_preconditioner(name, relative):
    build, momentum, bound = ADAPTIVE[name]
    model = Quadratic()
    edge = edge_ratio(problem_of(model), build(model, 1.0, momentum))
    assert edge.bound == pytest.approx(bound)
    expected = bound / LAMBDA * (2e6 if name == "Adagrad" else 2.0)  # α·λ·P² = bound, P² = 1/2 (Adagrad 1/2e6)
    assert edge.allowed.value == pytest.approx(expected, rel=1e-6)
    optimizer = build(model, edge.allowed.value * relative, momentum)
    assert runs_away(model, optimizer) == (relative > 1)


def test_the_early_steps_of_adam_are_corrected():
    case = make("tanh MLP")
    optimizer = torch.optim.Adam(case.model.parameters(), lr=1e-3)
    train(case, optimizer, 2)
    edge = edge_ratio(Problem(case.model, case.loss_fn, case.data), optimizer)
    assert edge.rate == pytest.approx(1e-3 / (1 - 0.9**2))
    assert edge.ratio.value == pytest.approx(edge.learning_rate / edge.allowed.value)


def test_groups_with_their_own_rates():
    """Scaling a group's rate is scaling its parameters: the ratio is λ_max of the matrix scaled by rate/bound."""
    case = make("tanh MLP")
    model = case.model
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.3}, {"params": model[2].parameters(), "lr": 0.05, "momentum": 0.5}],
        lr=1.0,
    )
    problem = Problem(model, case.loss_fn, case.data)
    sizes = [p.numel() for p in model.parameters()]
    weights = torch.cat(
        [torch.full((n,), w, dtype=torch.float64) for n, w in zip(sizes, [0.15, 0.15, 0.05 / 3, 0.05 / 3], strict=True)]
    )
    scale = torch.diag(weights.sqrt())
    expected = torch.linalg.eigvalsh(scale @ Hessian(problem).dense() @ scale)[-1]
    edge = edge_ratio(problem, optimizer)
    assert edge.groups == 2
    assert edge.ratio.value == pytest.approx(float(expected), rel=1e-6)
    assert float(expected) in edge.ratio


def test_a_known_largest_eigenvalue_is_used():
    case = make("tanh MLP")
    optimizer = torch.optim.RMSprop(case.model.parameters(), lr=1e-3)
    train(case, optimizer, 3)
    problem = Problem(case.model, case.loss_fn, case.data)
    largest = eigenvalues(Hessian(problem).preconditioned(preconditioner_of(optimizer))).largest()
    assert edge_ratio(problem, optimizer, largest=largest).ratio.value == pytest.approx(largest.value * 1e-3 / 2)


def test_without_positive_curvature_any_rate_is_allowed():
    class Hill(Quadratic):
        def forward(self, x):
            return -super().forward(x)

    model = Hill()
    edge = edge_ratio(problem_of(model), torch.optim.SGD(model.parameters(), lr=0.1))
    assert math.isinf(edge.allowed.value)
    assert edge.ratio.value < 0


def test_refusals():
    model = Quadratic()
    with pytest.raises(ValueError, match="maximizes"):
        edge_ratio(problem_of(model), torch.optim.SGD(model.parameters(), lr=0.1, maximize=True))


def test_a_learning_rate_of_zero_has_a_bound_all_the_same():
    model = Quadratic()
    edge = edge_ratio(problem_of(model), torch.optim.SGD(model.parameters(), lr=0.0))
    assert edge.ratio.value == 0
    assert edge.allowed.value == pytest.approx(2 / LAMBDA)
    undamped = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=1.0)
    assert math.isinf(edge_ratio(problem_of(model), undamped).allowed.value)
    case = make("tanh MLP")
    groups = [{"params": case.model[0].parameters(), "lr": 0.0}, {"params": case.model[2].parameters()}]
    problem = Problem(case.model, case.loss_fn, case.data)
    still = edge_ratio(problem, torch.optim.SGD(groups, lr=0.1)).ratio.value
    moving = Problem(case.model, case.loss_fn, case.data, parameters=["2.weight", "2.bias"])
    alone = edge_ratio(moving, torch.optim.SGD(case.model[2].parameters(), lr=0.1)).ratio.value
    assert still == pytest.approx(alone, rel=1e-6)


# What a step keeps of the gradients before it; everything else is put back before each step, so that P and the early
# steps' corrections are those of one and the same step: a twin of the optimizer that is frozen at t.
MOMENTA = ("exp_avg", "momentum_buffer")


class FrozenAt:
    """An optimizer whose every step is its t-th, with √v such that P² is about 1/2."""

    def __init__(self, model, kind, t, options):
        self.model, self.kind, self.t = model, kind, t
        self.optimizer = kind(model.parameters(), lr=1.0, **options)
        self.step()
        group = self.optimizer.param_groups[0]
        for state in self.optimizer.state.values():
            for key, value in state.items():
                if key == "step":
                    state[key] = torch.full_like(value, t - 1.0) if torch.is_tensor(value) else t - 1
                elif key == "mu_product":
                    beta, decay = group["betas"][0], group["momentum_decay"]
                    mus = [beta * (1 - 0.5 * 0.96 ** (i * decay)) for i in range(1, t)]
                    state[key] = torch.full_like(value, math.prod(mus))
                elif key == "acc_delta":
                    state[key] = torch.full_like(value, 2.0)
                elif value is not None and key not in (*MOMENTA, "eta", "mu", "ax", "grad_avg"):
                    state[key] = torch.full_like(value, 4.0)
        self.before = None

    def step(self):
        self.optimizer.zero_grad()
        self.model(torch.ones(1, dtype=torch.float64)).sum().backward()
        if self.kind is torch.optim.SparseAdam:
            self.model.p.grad = self.model.p.grad.to_sparse()
        self.optimizer.step()

    def frozen_step(self):
        (state,) = self.optimizer.state.values()
        if self.before is None:
            self.before = {k: v for k, v in copy.deepcopy(state).items() if k not in MOMENTA}
        state.update(copy.deepcopy(self.before))
        if self.kind is torch.optim.ASGD:
            group = self.optimizer.param_groups[0]
            state["eta"].fill_(group["lr"] / (1 + group["lambd"] * group["lr"] * (self.t - 1)) ** group["alpha"])
        self.step()

    def runs_away(self):
        start = 1e-6
        with torch.no_grad():
            self.model.p.fill_(start)
        for state in self.optimizer.state.values():
            for key in MOMENTA:
                if state.get(key) is not None:
                    state[key].zero_()
        for _ in range(3000):
            self.frozen_step()
            size = float(self.model.p[0].detach().abs())
            if size > 1e3 * start:
                return True
            if size < 1e-3 * start and float(self.model.p.grad.to_dense().abs()[0]) < 1e-3 * start:
                return False
        assert size < start
        return False


ADAMS = torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax
ROWS = [
    *((kind, t, {}) for kind in ADAMS for t in (1, 2, 10, 300)),
    (torch.optim.NAdam, 20_000, {}),
    (torch.optim.NAdam, 3, {"betas": (0.5, 0.999), "momentum_decay": 0.5}),
    (torch.optim.SparseAdam, 3, {}),
    (torch.optim.Adam, 5, {"amsgrad": True}),
    (torch.optim.RMSprop, 3, {"momentum": 0.7}),
    (torch.optim.RMSprop, 3, {"centered": True}),
    (torch.optim.Adagrad, 8, {"lr_decay": 0.3}),
    (torch.optim.Adadelta, 4, {}),
    (torch.optim.ASGD, 50, {"lambd": 1e-3}),
    # Weight decay: the ratio is half decay and more.
    (torch.optim.SGD, 1, {"weight_decay": 5.0, "momentum": 0.6}),
    (torch.optim.ASGD, 1, {"lambd": 0.5, "weight_decay": 2.0}),
    (torch.optim.Adam, 100, {"weight_decay": 3.0}),
    (torch.optim.Adagrad, 2, {"weight_decay": 3.0}),
    (torch.optim.AdamW, 2, {"weight_decay": 0.3}),
    (torch.optim.AdamW, 400, {"weight_decay": 0.1, "betas": (0.8, 0.999)}),
    (torch.optim.NAdam, 30, {"weight_decay": 0.5, "decoupled_weight_decay": True}),
    (torch.optim.RAdam, 30, {"weight_decay": 0.5, "decoupled_weight_decay": True}),
]


@pytest.mark.parametrize(
    ("kind", "t", "options"), ROWS, ids=[f"{k.__name__} {t} {' '.join(o)}".strip() for k, t, o in ROWS]
)
def test_every_update_frozen_at_its_step(kind, t, options):
    """2 % below the allowed rate it converges, 2 % above it diverges, whatever the step number and the decay."""
    model = Quadratic()
    twin = FrozenAt(model, kind, t, options)
    with torch.no_grad():
        model.p.fill_(1e-6)
    if twin.optimizer.state:
        twin.frozen_step()
    else:
        twin.frozen_step = twin.step
    edge = edge_ratio(problem_of(model), twin.optimizer)
    if options.get("weight_decay"):
        without = edge_ratio(problem_of(model), _without_decay(twin.optimizer))
        assert edge.ratio.value > 1.3 * without.ratio.value  # else this says nothing about decay
    for relative in (0.98, 1.02):
        twin.optimizer.param_groups[0]["lr"] = edge.allowed.value * relative
        assert twin.runs_away() == (relative > 1), relative


def _without_decay(optimizer):
    twin = copy.copy(optimizer)
    twin.param_groups = [{**group, "weight_decay": 0.0} for group in optimizer.param_groups]
    return twin


def test_weight_decay_of_groups_against_the_dense_matrix():
    case = make("tanh MLP")
    first, second = case.model[0], case.model[2]
    optimizer = torch.optim.Adam(
        [
            {"params": first.parameters(), "weight_decay": 0.3, "lr": 0.02},
            {"params": second.parameters(), "weight_decay": 0.7, "decoupled_weight_decay": True, "betas": (0.5, 0.99)},
        ],
        lr=0.05,
    )
    train(case, optimizer, 4)
    problem = Problem(case.model, case.loss_fn, case.data)
    H, P = Hessian(problem).dense(), preconditioner_of(optimizer)
    scale = torch.cat([s.flatten() for s in P.scales])
    n = sum(p.numel() for p in first.parameters())
    mine = (torch.arange(len(scale)) < n).double()
    share = mine * 0.02 / (1 - 0.9**4) / 38 + (1 - mine) * 0.05 / (1 - 0.5**4) / 6
    added = mine * share * 0.3 * scale**2 + (1 - mine) * 0.05 * 0.7 / 2
    outer = scale * share.sqrt()
    expected = float(torch.linalg.eigvalsh(outer[:, None] * H * outer + torch.diag(added))[-1])
    edge = edge_ratio(problem, optimizer)
    assert edge.ratio.value == pytest.approx(expected, rel=1e-6)
    assert expected in edge.ratio
    assert edge.decay == 0.7


def test_decay_that_is_the_same_everywhere_needs_no_products_of_its_own():
    case = make("tanh MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    H = Hessian(problem)
    largest = eigenvalues(H).largest()
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, weight_decay=0.5)
    spent = H.products
    edge = edge_ratio(problem, optimizer, largest=largest, curvature=H)
    assert H.products == spent
    assert edge.ratio.value == pytest.approx(0.1 * (largest.value + 0.5) / 2)
    assert edge.allowed.value == pytest.approx(2 / (largest.value + 0.5))


@pytest.mark.parametrize("options", SGDS.values(), ids=SGDS)
def test_the_suggested_rate_has_the_edge_ratio_asked_for(options):
    case = make("tanh MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.01, **options)
    suggested = suggest_learning_rate(problem, optimizer, target=0.8)
    for group in optimizer.param_groups:
        group["lr"] *= suggested.factor.value
    assert optimizer.param_groups[0]["lr"] == pytest.approx(suggested.learning_rate.value)
    assert edge_ratio(problem, optimizer).ratio.value == pytest.approx(0.8, rel=1e-9)
    assert not suggested.note
    assert str(suggested).startswith("learning rate")


def test_a_suggestion_for_groups_and_decay():
    case = make("tanh MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    groups = [{"params": case.model[0].parameters(), "lr": 0.02}, {"params": case.model[2].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.001, weight_decay=0.1)
    train(case, optimizer, 3)
    suggested = suggest_learning_rate(problem, optimizer)
    assert "factor" in suggested.note
    assert "weight decay, up to 0.1" in suggested.note
    for group in optimizer.param_groups:
        group["lr"] *= suggested.factor.value
    assert edge_ratio(problem, optimizer).ratio.value == pytest.approx(0.5, rel=1e-9)


def test_suggestions_where_there_is_no_rate():
    model = Quadratic()
    still = suggest_learning_rate(problem_of(model), torch.optim.SGD(model.parameters(), lr=0.0))
    assert still.learning_rate.value == pytest.approx(1 / LAMBDA)
    assert not still.factor.defined
    hill = Problem(model, lambda output, target: -output.sum(), problem_of(model).batches)
    free = suggest_learning_rate(hill, torch.optim.SGD(model.parameters(), lr=0.1))
    assert math.isinf(free.learning_rate.value)
    assert "no positive curvature" in str(free)
    for target in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="target"):
            suggest_learning_rate(hill, torch.optim.SGD(model.parameters(), lr=0.1), target=target)
