"""The stability bounds are sharp: 2 % below they converge, 2 % above they diverge (theory, section 2.3)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.problems import make, train
from wellcond.curvature import Hessian
from wellcond.linalg import eigenvalues
from wellcond.preconditioners import preconditioner_of
from wellcond.problem import Problem
from wellcond.stability import edge_ratio

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
