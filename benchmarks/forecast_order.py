"""Does the forecast put preconditioners in the order in which training with them, P frozen, does?

Three small networks on scikit-learn's data, at an early and a later point of Adam training, five seeds each. At each
point five preconditioners are forecast for 30 steps and then trained with for 30 steps, on the same data at the same
rate, 1/λ_max(PᵀHP). Every pair of preconditioners is a question: which of the two has the lower loss? Prints the tables
of docs/forecast.md.

    python benchmarks/forecast_order.py [--quick]
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor, nn

import wellcond as wc
from tables import Table, arguments, share

STEPS = 30
POINTS = {"early": 20, "later": 500}
NAMES = ["none", "Adam", "RMSProp", "Jacobi", "row norms"]
PAIRS = list(itertools.combinations(NAMES, 2))


def digits() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    X, y = load_digits(return_X_y=True)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10))
    return model, nn.CrossEntropyLoss(), torch.tensor(X).reshape(-1, 1, 8, 8) / 16, torch.tensor(y)


def breast_cancer() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    X, y = load_breast_cancer(return_X_y=True)
    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    return model, nn.CrossEntropyLoss(), torch.tensor((X - X.mean(0)) / X.std(0)), torch.tensor(y)


def diabetes() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    X, y = load_diabetes(return_X_y=True)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
    y = (y - y.mean()) / y.std()
    return model, nn.MSELoss(), torch.tensor(X / X.std(0)), torch.tensor(y[:, None])


def points(
    build: Callable[[], tuple[nn.Module, nn.Module, Tensor, Tensor]], seed: int
) -> Iterator[tuple[str, wc.Problem, dict[str, wc.Preconditioner | None]]]:
    """Training by Adam, with RMSProp's second moment kept beside it: (point, problem, preconditioners)."""
    torch.manual_seed(seed)
    model, loss_fn, X, y = build()
    model = model.double()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    rmsprop = torch.optim.RMSprop(model.parameters(), lr=0.0)  # moves nothing
    for step in range(1, max(POINTS.values()) + 1):
        chosen = torch.randperm(len(X))[:128]
        adam.zero_grad()
        loss_fn(model(X[chosen]), y[chosen]).backward()
        adam.step()
        rmsprop.step()
        for point, after in POINTS.items():
            if step == after:
                problem = wc.Problem(model, loss_fn, (X, y))
                with problem:
                    P = {
                        "none": None,
                        "Adam": wc.preconditioner_of(adam),
                        "RMSProp": wc.preconditioner_of(rmsprop),
                        "Jacobi": wc.jacobi(wc.GaussNewton(problem)),
                        "row norms": wc.row_scaling(wc.Hessian(problem)),
                    }
                yield point, problem, P


@dataclass
class Case:
    """One network at one point: what was predicted, and what came."""

    where: tuple[str, str]  # network, point
    seed: int
    predicted: dict[str, dict[str, float]]  # predictor → preconditioner → its figure, lower is better
    trusted: dict[str, int]
    true: dict[str, float]

    def right(self, predictor: str = "forecast", pairs: list[tuple[str, str]] = PAIRS) -> int:
        figure = self.predicted[predictor]
        return sum((figure[a] - figure[b]) * (self.true[a] - self.true[b]) > 0 for a, b in pairs)


def trained(problem: wc.Problem, P: wc.Preconditioner | None, rate: float) -> float:
    """The loss after gradient descent with P frozen, on the whole data."""
    twin = wc.Problem(copy.deepcopy(problem.model), problem.loss_fn, problem.batches)
    sizes = [p.numel() for p in twin.parameters]
    for _ in range(STEPS):
        step = [g.view_as(p) for g, p in zip(twin.gradient().split(sizes), twin.parameters, strict=True)]
        if P is not None:
            step = P.apply(P.adjoint(step))
        with torch.no_grad():
            for p, s in zip(twin.parameters, step, strict=True):
                p -= rate * s
    return twin.loss()


def measured(where: tuple[str, str], seed: int, problem: wc.Problem, P: dict[str, wc.Preconditioner | None]) -> Case:
    f = wc.forecast(problem, P, steps=STEPS)
    rates = {name: wc.Candidate(p, f[name].learning_rate) for name, p in P.items()}
    with_hessian = wc.forecast(problem, rates, steps=STEPS, curvature=wc.Hessian(problem))
    with problem:
        G = wc.GaussNewton(problem)
        figures = {name: wc.conditioning(G if p is None else G.preconditioned(p)) for name, p in P.items()}
    predicted = {
        "forecast": {name: float(c.losses[-1]) for name, c in f.curves.items()},
        "its first step": {name: float(c.losses[1]) for name, c in f.curves.items()},
        "forecast with the Hessian": {name: float(c.losses[-1]) for name, c in with_hessian.curves.items()},
        "κ_eff": {name: c.kappa_effective.value for name, c in figures.items()},
        "κ̄": {name: c.kappa_mean.value for name, c in figures.items()},
    }
    trusted = {name: c.trusted_steps for name, c in f.curves.items()}
    true = {name: trained(problem, P[name], c.learning_rate) for name, c in f.curves.items()}
    return Case(where, seed, predicted, trusted, true)


def report(cases: list[Case]) -> None:
    points = Table("network", "point", "pairs right", "Kendall's τ, mean (least to most)")
    for where in dict.fromkeys(c.where for c in cases):
        here = [c for c in cases if c.where == where]
        taus = [2 * c.right() / len(PAIRS) - 1 for c in here]
        tau = f"{sum(taus) / len(taus):.2f} ({min(taus):.1f} to {max(taus):.1f})"
        points.add(*where, right(here), tau)
    horizons = Table("both curves trusted for at least", "pairs right")
    for low, high in [(STEPS, STEPS), (10, STEPS - 1), (1, 9), (0, 0)]:
        pairs = [(c, (a, b)) for c in cases for a, b in PAIRS if low <= min(c.trusted[a], c.trusted[b]) <= high]
        held = sum(c.right(pairs=[pair]) for c, pair in pairs)
        horizons.add(f"{low} steps{f', under {high + 1}' if high < STEPS else ''}", share(held, len(pairs)))
    rankings = Table("ranked by", "pairs right, early", "later")
    for predictor in cases[0].predicted:
        at = ([c for c in cases if c.where[1] == point] for point in POINTS)
        rankings.add(predictor, *(right(here, predictor) for here in at))
    wrong = Table("network", "point", "seed", "right", "predicted, best first", "in training")
    for c in cases:
        if c.right() < len(PAIRS):
            orders = (", ".join(sorted(NAMES, key=figure.get)) for figure in (c.predicted["forecast"], c.true))
            wrong.add(*c.where, c.seed, c.right(), *orders)
    tables = (table.markdown() for table in (points, horizons, rankings, wrong))
    print(f"Pairs in the right order at {STEPS} steps: {right(cases)}", *tables, sep="\n\n")


def right(cases: list[Case], predictor: str = "forecast") -> str:
    return share(sum(c.right(predictor) for c in cases), len(PAIRS) * len(cases))


def picture(path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    *_, (_, problem, P) = points(digits, 0)
    others = {"heavy ball": wc.Candidate(None, momentum=0.9), "too fast": wc.Candidate(None, learning_rate=0.7)}
    figure = wc.forecast(problem, {name: P[name] for name in NAMES if name != "RMSProp"} | others).plot().figure
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = arguments(__doc__, quick="one seed instead of five")
    parser.add_argument("--picture", metavar="FILE", help="only draw the curves of digits, later, seed 0")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.picture:
        picture(chosen.picture)
        return
    seeds = 1 if chosen.quick else 5
    cases = [
        measured((build.__name__.replace("_", " "), point), seed, problem, P)
        for build in (digits, breast_cancer, diabetes)
        for seed in range(seeds)
        for point, problem, P in points(build, seed)
    ]
    report(sorted(cases, key=lambda c: list(POINTS).index(c.where[1])))


if __name__ == "__main__":
    main()
