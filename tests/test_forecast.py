"""Forecasts against true curves: to rounding on quadratics, the order of preconditioners on networks."""

from __future__ import annotations

import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import nn

from tests.problems import make
from wellcond.curvature import GaussNewton, Hessian
from wellcond.curvature.scaling import jacobi, row_scaling
from wellcond.forecasts import Candidate, forecast
from wellcond.forecasts.forecast import displacements
from wellcond.preconditioners import DiagonalPreconditioner, Momentum, preconditioner_of
from wellcond.problem import Problem


def least_squares(seed=0, width=25, N=60):
    """A quadratic with a spread spectrum, and a diagonal P for it that is neither good nor flat."""
    torch.manual_seed(seed)
    X = torch.randn(N, width, dtype=torch.float64) * torch.logspace(0, 1, width, dtype=torch.float64)
    model = nn.Linear(width, 1).double()
    problem = Problem(model, nn.MSELoss(), (X, torch.randn(N, 1, dtype=torch.float64) + X.sum(1, keepdim=True)))
    scales = [torch.rand(p.shape, dtype=torch.float64) + 0.1 for p in problem.parameters]
    return problem, DiagonalPreconditioner(problem.parameters, scales)


def descend(problem, P, rate, update, steps):
    """The true losses: `update` makes a step of the gradient in z and of its own memory."""
    twin = Problem(copy.deepcopy(problem.model), problem.loss_fn, problem.batches)
    sizes, memory, losses = [p.numel() for p in twin.parameters], {}, [twin.loss()]
    for k in range(1, steps + 1):
        g = [x.view_as(p) for x, p in zip(twin.gradient().split(sizes), twin.parameters, strict=True)]
        g = g if P is None else P.adjoint(g)
        step = [update(memory.setdefault(i, {}), x, k) for i, x in enumerate(g)]
        step = step if P is None else P.apply(step)
        with torch.no_grad():
            for p, s in zip(twin.parameters, step, strict=True):
                p -= rate * s
        losses.append(twin.loss())
    return torch.tensor(losses, dtype=torch.float64)


def plain(memory, g, k):
    return g


def heavy_ball(beta):
    def update(memory, g, k):
        memory["m"] = beta * memory.get("m", 0) + g
        return memory["m"]

    return update


def nesterov(beta):
    def update(memory, g, k):
        memory["m"] = beta * memory.get("m", 0) + g
        return g + beta * memory["m"]

    return update


def averaged(beta):
    def update(memory, g, k):
        memory["m"] = beta * memory.get("m", 0) + (1 - beta) * g
        return memory["m"] / (1 - beta**k)

    return update


METHODS = {
    "gradient descent": (0.0, plain),
    "heavy ball 0.5": (0.5, heavy_ball(0.5)),
    "heavy ball 0.9": (Momentum.heavy_ball(0.9), heavy_ball(0.9)),
    "Nesterov": (Momentum.nesterov(0.9), nesterov(0.9)),
    "Adam's": (Momentum.average(0.9), averaged(0.9)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("relative", [0.05, 0.5, 0.98, 1.05])
def test_on_a_quadratic_it_is_the_true_curve(method, preconditioned, relative):
    """To 1e-8, below and above the bound, for as many steps as there are Lanczos steps."""
    problem, P = least_squares()
    P = P if preconditioned else None
    momentum, update = METHODS[method]
    H = Hessian(problem) if P is None else Hessian(problem).preconditioned(P)
    bound = (momentum if isinstance(momentum, Momentum) else Momentum.heavy_ball(momentum)).bound
    rate = relative * bound / float(torch.linalg.eigvalsh(H.dense())[-1])
    curve = forecast(problem, {"it": Candidate(P, rate, momentum)}, steps=20)["it"]
    true = descend(problem, P, rate, update, 20)
    torch.testing.assert_close(curve.losses, true, rtol=1e-8, atol=0)
    assert curve.trusted_steps == 20
    assert curve.diverges == (relative > 1)
    for n, loss in curve.true_losses.items():
        assert loss == pytest.approx(float(true[n]), rel=1e-8)


def test_beyond_the_lanczos_steps_it_is_close():
    problem, _ = least_squares()
    rate = 1 / float(torch.linalg.eigvalsh(Hessian(problem).dense())[-1])
    f = forecast(problem, {"it": Candidate(None, rate)}, steps=200, max_products=15)
    true = descend(problem, None, rate, plain, 200)
    torch.testing.assert_close(f["it"].losses[:16], true[:16], rtol=1e-8, atol=0)
    torch.testing.assert_close(f["it"].losses, true, rtol=1e-2, atol=0)
    whole = forecast(problem, {"it": Candidate(None, rate)}, steps=200)["it"]
    torch.testing.assert_close(whole.losses, true, rtol=1e-8, atol=0)  # the space of 26 dimensions is exhausted


def test_the_residual_polynomials():
    theta, alpha, beta = torch.tensor([-0.3, 0.0, 1e-9, 0.7, 2.0], dtype=torch.float64), 0.4, 0.8
    descent = displacements(theta, alpha, Momentum(), 12)
    powers = torch.stack([(1 - alpha * theta) ** n for n in range(13)])
    torch.testing.assert_close(1 - theta * descent, powers, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(descent[:, 1], alpha * torch.arange(13, dtype=torch.float64))
    r = [torch.ones_like(theta), 1 - alpha * theta]
    for _ in range(11):
        r.append((1 + beta - alpha * theta) * r[-1] - beta * r[-2])
    ball = displacements(theta, alpha, Momentum.heavy_ball(beta), 12)
    torch.testing.assert_close(1 - theta * ball, torch.stack(r), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}, {"momentum": 0.8, "dampening": 0.5}]
)
def test_as_it_is_follows_torchs_own_optimizer(options):
    problem, _ = least_squares()
    model = problem.model
    # The groups' rates differ: the weight learns at 5e-3, the bias at 0.1.
    groups = [{"params": [model.weight], "lr": 5e-3}, {"params": [model.bias], "lr": 0.1}]
    curve = forecast(problem, {"as it is": torch.optim.SGD(groups, **options)}, steps=20)["as it is"]
    twin = copy.deepcopy(model)
    groups = [{"params": [twin.weight], "lr": 5e-3}, {"params": [twin.bias], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, **options)
    (X, y), losses = problem.batches[0], []
    for _ in range(21):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(twin(X), y)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(curve.losses, torch.tensor(losses, dtype=torch.float64), rtol=1e-8, atol=0)


def test_as_it_is_of_an_adaptive_optimizer():
    problem, _ = least_squares()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(problem.model(problem.batches[0][0]), problem.batches[0][1]).backward()
        optimizer.step()
    P = preconditioner_of(optimizer)
    f = forecast(problem, {"as it is": optimizer, "P alone": P}, steps=15)
    assert f["as it is"].learning_rate == 0.01
    assert f["as it is"].momentum == Momentum.average(0.9)
    torch.testing.assert_close(f["as it is"].losses, descend(problem, P, 0.01, averaged(0.9), 15), rtol=1e-8, atol=0)
    largest = float(torch.linalg.eigvalsh(Hessian(problem).preconditioned(P).dense())[-1])
    assert f["P alone"].learning_rate == pytest.approx(1 / largest, rel=1e-3)
    assert f["P alone"].edge_ratio == pytest.approx(0.5, rel=1e-3)


def test_many_rates_and_momenta_cost_one_run():
    problem, P = least_squares()
    alone = forecast(problem, {"it": Candidate(P, 1e-3)}, steps=10)
    several = forecast(problem, {"it": Candidate(P, [1e-3, 1e-2], [0.0, 0.5])}, steps=10)
    assert list(several.curves) == [f"it, lr {lr}, β {b}" for lr in ("0.001", "0.01") for b in ("0", "0.5")]
    assert several.products == alone.products
    torch.testing.assert_close(several["it, lr 0.001, β 0"].losses, alone["it"].losses)
    tensors = {"it": Candidate(P, torch.tensor([1e-3, 1e-2])), "one": Candidate(P, torch.tensor(1e-3))}
    assert list(forecast(problem, tensors, steps=2).curves) == ["it, lr 0.001", "it, lr 0.01", "one"]


class Wave(nn.Module):
    """cos of the parameters' distance from 1, summed, with curvatures apart: not a quadratic for long."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([0.5, 0.9], dtype=torch.float64))

    def forward(self, x):
        return (-torch.cos(self.p - 1) * torch.tensor([1.0, 9.0], dtype=torch.float64)).sum() * x


def test_trust_ends_where_the_loss_parts_from_the_prediction():
    """Every step's true loss at the predicted parameters, from the closed form, against what bisection says."""
    model, one = Wave(), torch.ones(1, dtype=torch.float64)
    problem = Problem(model, lambda output, target: output.sum(), (one, one))
    start = model.p.detach().clone()
    H = torch.cos(start - 1) * torch.tensor([1.0, 9.0], dtype=torch.float64)
    g = torch.sin(start - 1) * torch.tensor([1.0, 9.0], dtype=torch.float64)
    for rate, tolerance in ((0.01, 0.1), (0.1, 0.1), (0.1, 0.02), (0.24, 0.003)):
        curve = forecast(
            problem, {"it": Candidate(None, rate)}, steps=40, curvature=Hessian(problem), tolerance=tolerance
        )["it"]
        moved = -(1 - (1 - rate * H) ** torch.arange(41, dtype=torch.float64)[:, None]) / H * g
        true = (-torch.cos(start + moved - 1) * torch.tensor([1.0, 9.0], dtype=torch.float64)).sum(1)
        change = (curve.losses - curve.losses[0]).abs().cummax(0).values
        holds = ((true - curve.losses).abs() <= tolerance * change + 1e-14).tolist()
        assert all(holds[n] for n in curve.true_losses if n <= curve.trusted_steps)
        assert curve.trusted_steps == 40 or not holds[curve.trusted_steps + 1]
        for n, loss in curve.true_losses.items():
            assert loss == pytest.approx(float(true[n]), rel=1e-12)
    strict = [
        forecast(problem, {"it": Candidate(None, 0.1)}, curvature=Hessian(problem), tolerance=t)["it"].trusted_steps
        for t in (1e-6, 0.02, 10.0)
    ]
    assert strict == sorted(strict)
    assert strict[0] < strict[-1]


def test_negative_curvature_is_said():
    """A saddle: the quadratic falls for ever, exactly as this loss, which is one, does."""
    saddle = SimpleNamespace(A=torch.diag(torch.tensor([3.0, 1.0, -0.5], dtype=torch.float64)))

    class Saddle(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x):
            return 0.5 * (self.p @ saddle.A @ self.p) * x

    one = torch.ones(1, dtype=torch.float64)
    problem = Problem(Saddle(), loss=lambda model, batch: model(batch).sum(), data=one)
    f = forecast(problem, {"plain": None}, steps=25)
    assert f.curvature == "Hessian"  # there is no output to split the loss at
    assert f["plain"].negative_share == pytest.approx(0.25 / (9 + 1 + 0.25))
    assert "negative curvature" in str(f)
    rate = f["plain"].learning_rate
    assert rate == pytest.approx(1 / 3)
    A = saddle.A.diagonal()
    true = torch.stack([(0.5 * A * (1 - rate * A) ** (2 * n)).sum() for n in range(26)])
    torch.testing.assert_close(f["plain"].losses, true, rtol=1e-8, atol=1e-12)
    hill = Problem(Saddle(), loss=lambda model, batch: -(model.p**2).sum(), data=one)
    with pytest.raises(ValueError, match="no rate follows"):
        forecast(hill, {"plain": None})
    assert forecast(hill, {"plain": Candidate(None, 0.1)})["plain"].losses[-1] < -1


def test_a_trace_is_not_left_and_large_steps_overflow_quietly():
    case = make("batch norm")
    problem = Problem(case.model, case.loss_fn, case.data)
    before = [t.clone() for t in (*case.model.parameters(), *case.model.buffers(), torch.get_rng_state())]
    f = forecast(problem, {"plain": Candidate(None, [0.1, 1e200])}, steps=5)
    after = (*case.model.parameters(), *case.model.buffers(), torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in case.model.parameters())
    wild = f["plain, lr 1e+200"]
    assert wild.diverges
    assert wild.trusted_steps == 0
    assert f.ranking()[-1] == wild.name
    assert f.best.name == "plain, lr 0.1"


def test_float32_and_several_batches():
    case = make("uneven batches")
    exact = forecast(Problem(case.model, case.loss_fn, case.data), {"it": Candidate(None, 0.1, 0.5)}, steps=15)["it"]
    model = copy.deepcopy(case.model).float()
    batches = [(x.float(), y.float()) for x, y in case.data]
    rough = forecast(Problem(model, case.loss_fn, batches), {"it": Candidate(None, 0.1, 0.5)}, steps=15)["it"]
    torch.testing.assert_close(rough.losses, exact.losses, rtol=1e-4, atol=0)
    assert rough.trusted_steps == exact.trusted_steps


def test_ranking_and_table():
    problem, P = least_squares()
    f = forecast(problem, {"plain": None, "Jacobi": jacobi(GaussNewton(problem)), "P": P, "wild": Candidate(None, 1.0)})
    assert f.ranking()[0] == f.best.name == "Jacobi"
    assert f.ranking()[-1] == "wild"
    assert f.ranking(at=1) == sorted(f.curves, key=lambda n: (n == "wild", float(f[n].losses[1])))
    text = str(f)
    assert text.splitlines()[2].startswith("Jacobi")
    assert "diverges" in text
    assert "step 30" in text
    for at in (0, 31):
        with pytest.raises(ValueError, match="step 1 to 30"):
            f.ranking(at=at)
    with pytest.raises(KeyError, match="no curve 'x'"):
        f["x"]
    assert f.forward_passes == 1 + sum(len(f[name].true_losses) for name in f.curves)


def test_the_plot_shows_what_it_says():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    problem, P = least_squares()
    f = forecast(problem, {"plain": None, "P": P, "wild": Candidate(None, 1.0)}, steps=12)
    ax = f.plot()
    assert ax.get_xlabel() == "step"
    assert ax.get_ylabel() == "loss"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [label.split(" (")[0] for label in labels] == f.ranking()
    assert "diverges" in labels[-1]
    low, high = ax.get_ylim()
    assert low < min(float(f[n].losses.min()) for n in ("plain", "P"))
    assert f.loss < high < 10 * f.loss  # what diverges does not set the scale
    assert f.plot(ax) is ax
    only = forecast(problem, {"wild": Candidate(None, 1.0)}, steps=12).plot()
    assert math.isfinite(only.get_ylim()[1])
    pyplot.close("all")


def test_refusals():
    problem, P = least_squares()
    other, _ = least_squares(1)
    with pytest.raises(ValueError, match="no candidate"):
        forecast(problem, {})
    with pytest.raises(TypeError, match="give a dict"):
        forecast(problem, [P])
    with pytest.raises(TypeError, match="candidate 'x' is a str"):
        forecast(problem, {"x": "adam"})
    with pytest.raises(ValueError, match="does not cover"):
        forecast(problem, {"x": jacobi(GaussNewton(other))})
    with pytest.raises(TypeError, match="Muon"):
        forecast(problem, {"x": torch.optim.Muon([problem.model.weight])})
    groups = [{"params": [problem.model.weight], "momentum": 0.5}, {"params": [problem.model.bias]}]
    with pytest.raises(ValueError, match="different momenta"):
        forecast(problem, {"x": torch.optim.SGD(groups, lr=0.1)})
    for rate in (-1.0, 0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="learning_rate"):
            Candidate(None, rate)
    for momentum in (1.0, -0.1, [0.5, 2.0]):
        with pytest.raises(ValueError, match="momentum"):
            Candidate(None, 0.1, momentum)
    with pytest.raises(ValueError, match="empty list"):
        Candidate(None, [])
    with pytest.raises(TypeError, match="Preconditioner"):
        Candidate(torch.ones(3))
    with pytest.raises(ValueError, match="would be called"):
        forecast(problem, {"x": Candidate(None, [0.1, 0.1])})
    with pytest.raises(ValueError, match="positive"):
        forecast(problem, {"x": None}, steps=0)
    solved = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(solved.weight)
    zeros = torch.zeros(3, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="gradient is zero"):
        forecast(Problem(solved, nn.MSELoss(), (torch.ones(3, 2, dtype=torch.float64), zeros)), {"x": None})


# -- preconditioners made from the curvature ---------------------------------------------------------------------------


def test_jacobi_and_row_scaling_against_the_dense_matrix():
    case = make("tanh MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    G, H = GaussNewton(problem), Hessian(problem)
    unit = G.preconditioned(jacobi(G, floor=1e-12)).dense().diagonal()
    torch.testing.assert_close(unit, torch.ones_like(unit))
    scales = torch.cat([s.flatten() for s in row_scaling(H, floor=1e-12).scales])
    torch.testing.assert_close(scales, H.dense().norm(dim=1).rsqrt())
    floored = torch.cat([s.flatten() for s in jacobi(G, floor=0.5).scales]) ** -2
    assert float(floored.min() / floored.max()) == pytest.approx(0.5)
    for floor in (0.0, 2.0):
        with pytest.raises(ValueError, match="floor"):
            jacobi(G, floor=floor)


def test_sampled_scalings_approach_the_dense_ones(monkeypatch):
    case = make("tanh MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    G = GaussNewton(problem)

    def scales(make_scaling) -> torch.Tensor:
        return torch.cat([s.flatten() for s in make_scaling(G, floor=0.05).scales])

    def error(make_scaling, products: int) -> float:
        with monkeypatch.context() as patched:
            patched.setattr("wellcond.curvature.scaling.DENSE_LIMIT", 10)
            patched.setattr("wellcond.curvature.scaling.PRODUCTS", products)
            return float((scales(make_scaling) / exact).log().norm())

    for make_scaling, many in ((jacobi, problem.size), (row_scaling, 800)):
        exact = scales(make_scaling)
        few, better = (error(make_scaling, products) for products in (20, many))
        assert 0 < few < 0.5 * problem.size**0.5  # within a factor of 1.6 in the mean
        assert better < few / 3  # a sixth, but for luck and the floor
    flat = Problem(nn.Linear(2, 1).double(), lambda output, target: 0 * output.sum(), (torch.ones(3, 2).double(),) * 2)
    with pytest.raises(ValueError, match="nothing to scale by"):
        jacobi(GaussNewton(flat))


# -- three networks ----------------------------------------------------------------------------------------------------


def network(name):
    torch.manual_seed(0)
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10))
        return model.double(), nn.CrossEntropyLoss(), torch.tensor(X).reshape(-1, 1, 8, 8) / 16, torch.tensor(y)
    if name == "breast cancer":
        X, y = load_breast_cancer(return_X_y=True)
        model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))
        return model.double(), nn.CrossEntropyLoss(), torch.tensor((X - X.mean(0)) / X.std(0)), torch.tensor(y)
    X, y = load_diabetes(return_X_y=True)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 1))
    y = (y - y.mean()) / y.std()
    return model.double(), nn.MSELoss(), torch.tensor(X / X.std(0)), torch.tensor(y[:, None])


@pytest.mark.parametrize("name", ["digits", "breast cancer", "diabetes"])
def test_the_order_of_preconditioners_is_that_of_training(name):
    """Of the ten pairs of five preconditioners at least eight are in the order that 30 steps of training with P frozen
    give: docs/forecast.md has the full count."""
    model, loss_fn, X, y = network(name)
    adam, rmsprop = torch.optim.Adam(model.parameters(), lr=3e-3), torch.optim.RMSprop(model.parameters(), lr=0.0)
    for _ in range(200):
        chosen = torch.randperm(len(X))[:128]
        adam.zero_grad()
        loss_fn(model(X[chosen]), y[chosen]).backward()
        adam.step()
        rmsprop.step()  # only its second moment moves
    problem = Problem(model, loss_fn, (X[:200], y[:200]))
    candidates = {
        "none": None,
        "Adam": preconditioner_of(adam),
        "RMSProp": preconditioner_of(rmsprop),
        "Jacobi": jacobi(GaussNewton(problem)),
        "row norms": row_scaling(Hessian(problem)),
    }
    f = forecast(problem, candidates, steps=30)
    true = {n: float(descend(problem, candidates[n], c.learning_rate, plain, 30)[-1]) for n, c in f.curves.items()}
    pairs = list(itertools.combinations(candidates, 2))
    right = [(float(f[a].losses[-1]) < float(f[b].losses[-1])) == (true[a] < true[b]) for a, b in pairs]
    assert sum(right) >= 8
