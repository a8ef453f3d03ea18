"""Does `wc.what_if` name the normalization that is better in training?

Thirty cases a seed: ten networks on scikit-learn's digits, wine, breast cancer and diabetes, each with SGD, SGD with
momentum and Adam. In each, the network as it is and under four normalizations, all from the same function where that
can be, is trained by full-batch steps; the lowest loss at the last step over the learning rates counts. These are half
decades, two or more on either side of the best. Every pair of variants is a question: which of the two has the lower
loss? Writes the tables of docs/what-if.md.

    python benchmarks/what_if.py [--quick]
"""

import copy
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import Tensor, nn

import wellcond as wc
from tables import DOCS, Table, arguments, share, write_section

PAGE = DOCS / "what-if.md"
CHANGES = ["standardize inputs", "batch norm", "layer norm", "BNP"]
SHORT = {"as it is": "as it is", "standardize inputs": "standardized", "batch norm": "batch", "layer norm": "layer"}
PAIRS = list(itertools.combinations(CHANGES, 2))
WITH_NONE = [("as it is", change) for change in CHANGES]
WITH_BNP = [pair for pair in PAIRS + WITH_NONE if "BNP" in pair]
WITHOUT = [pair for pair in PAIRS + WITH_NONE if "BNP" not in pair]
STEPS = (100,)
SEEDS = (6, 7)  # the prediction was built while looking at 0 to 5
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "SGD": (torch.optim.SGD, 0.1),
    "momentum": (partial(torch.optim.SGD, momentum=0.9), 0.1),
    "Adam": (torch.optim.Adam, 1e-3),
}
Data = tuple[Tensor, Tensor, nn.Module]


def digits(scale: float, *shape: int) -> Data:
    X, y = load_digits(return_X_y=True)
    return torch.tensor(X[:500]).reshape(-1, *shape) / scale, torch.tensor(y[:500]), nn.CrossEntropyLoss()


def wine() -> Data:
    X, y = load_wine(return_X_y=True)
    return torch.tensor(X), torch.tensor(y), nn.CrossEntropyLoss()


def breast_cancer() -> Data:
    X, y = load_breast_cancer(return_X_y=True)
    return torch.tensor(X), torch.tensor(y), nn.CrossEntropyLoss()


def diabetes() -> Data:
    X, y = load_diabetes(return_X_y=True, scaled=False)
    return torch.tensor(X), torch.tensor((y - y.mean()) / y.std())[:, None], nn.MSELoss()


def mlp(activation: type[nn.Module], *widths: int) -> nn.Module:
    layers = [[nn.Linear(a, b), activation()] for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*layers)).append(nn.Identity())[:-2]


def two_convolutions() -> nn.Module:
    first, second = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3, stride=2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10))


NETWORKS: dict[str, tuple[Callable[[], Data], Callable[[], nn.Module]]] = {
    "digits, 64-64-10, ReLU": (partial(digits, 16, 64), partial(mlp, nn.ReLU, 64, 64, 10)),
    "digits, 64-32-32-10, tanh": (partial(digits, 16, 64), partial(mlp, nn.Tanh, 64, 32, 32, 10)),
    "digits, two convolutions": (partial(digits, 16, 1, 8, 8), two_convolutions),
    "digits from 0 to 16, convolution": (partial(digits, 1, 1, 8, 8), convolution),
    "wine, 13-32-3, ReLU": (wine, partial(mlp, nn.ReLU, 13, 32, 3)),
    "wine, 13-16-16-3, tanh": (wine, partial(mlp, nn.Tanh, 13, 16, 16, 3)),
    "breast cancer, 30-16-2, ReLU": (breast_cancer, partial(mlp, nn.ReLU, 30, 16, 2)),
    "breast cancer, 30-16-16-2, tanh": (breast_cancer, partial(mlp, nn.Tanh, 30, 16, 16, 2)),
    "diabetes, 10-32-1, ReLU": (diabetes, partial(mlp, nn.ReLU, 10, 32, 1)),
    "diabetes, 10-20-20-1, tanh": (diabetes, partial(mlp, nn.Tanh, 10, 20, 20, 1)),
}


@dataclass
class Case:
    """What was predicted of the variants, and what came: variant → steps → loss."""

    network: str
    optimizer: str
    seed: int
    intervals: dict[str, tuple[float, float]]
    predicted: dict[str, dict[str, float]]  # predictor → variant → its figure, lower is better
    true: dict[str, dict[int, float]]

    def right(self, pairs: list[tuple[str, str]], predictor: str, steps: int) -> int:
        figure = self.predicted[predictor]
        return sum((figure[a] - figure[b]) * (self.true[a][steps] - self.true[b][steps]) > 0 for a, b in pairs)

    def told(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The pairs whose intervals tell which is better."""
        low, high = ({k: interval[end] for k, interval in self.intervals.items()} for end in (0, 1))
        return [(a, b) for a, b in pairs if high[a] < low[b] or high[b] < low[a]]


def trained(model: nn.Module, data: Data, name: str, near: float, preconditioned: bool) -> dict[int, float]:
    """The lowest loss after each of `STEPS` over half decades of learning rates around one that is near the best."""
    runs: dict[int, dict[int, float]] = {}
    wanted, middle = {-2, -1, 0, 1, 2}, round(2 * math.log10(near))
    while wanted:
        for k in wanted:
            runs[k] = run(model, data, name, 10 ** ((middle + k) / 2), preconditioned)
        best = [min(runs, key=lambda k: runs[k][n]) for n in STEPS]
        wanted = {k + d for k in best for d in (-2, -1, 1, 2) if abs(middle + k + d) < 20} - set(runs)
    return {n: min(losses[n] for losses in runs.values()) for n in STEPS}


def run(model: nn.Module, data: Data, name: str, rate: float, preconditioned: bool) -> dict[int, float]:
    """The loss after each of `STEPS`; infinite from where it is not finite."""
    (X, y, loss_fn), twin = data, copy.deepcopy(model)
    optimizer = OPTIMIZERS[name][0](twin.parameters(), lr=rate)
    if preconditioned:
        wc.precondition(optimizer, wc.BatchNormPreconditioner(twin))
    losses = dict.fromkeys(STEPS, math.inf)
    for step in range(max(STEPS) + 1):
        optimizer.zero_grad()
        loss = loss_fn(twin(X), y)
        if not math.isfinite(loss.item()):
            break
        if step in losses:
            losses[step] = loss.item()
        loss.backward()
        optimizer.step()
    return losses


def measured(network: str, name: str, seed: int) -> Case:
    torch.set_num_threads(1)
    get, build = NETWORKS[network]
    data = get()
    torch.manual_seed(seed)
    model = build().double()
    make, rate = OPTIMIZERS[name]
    problem = wc.Problem(model, data[2], data[:2])
    optimizer = make(model.parameters(), lr=rate)
    found = wc.what_if(problem, optimizer, CHANGES, figures=False)
    variants = found.variants
    predicted = {
        "what-if": {k: v.predicted.value for k, v in variants.items()},
        "its loss after the warm-up": {k: v.loss for k, v in variants.items()},
    }
    intervals = {k: (v.predicted.low, v.predicted.high) for k, v in variants.items()}
    true = {k: trained(v.model, data, name, v.learning_rate, k == "BNP") for k, v in variants.items()}
    return Case(network, name, seed, intervals, predicted, true)


def order(figures: dict[str, float]) -> str:
    return ", ".join(SHORT.get(name, name) for name in sorted(CHANGES, key=figures.__getitem__))


def report(cases: list[Case], write: bool) -> None:
    soon, first = min(STEPS), [c for c in cases if c.seed == cases[0].seed]
    everything, seeds = PAIRS + WITH_NONE, list(dict.fromkeys(c.seed for c in cases))

    def right(pairs: list[tuple[str, str]], steps: int, of: list[Case], predictor: str = "what-if") -> str:
        return share(sum(c.right(pairs, predictor, steps) for c in of), len(pairs) * len(of))

    counts = Table(
        "which is better",
        *(f"seed {s}, {n} steps" for n in STEPS for s in seeds),
        "told apart",
        *(f"of those right, {n} steps" for n in STEPS),
    )
    for name, pairs in [(" or ".join(pair), [pair]) for pair in everything] + [("all pairs", everything)]:
        told = [c.told(pairs) for c in cases]
        n_told = sum(map(len, told))
        counts.add(
            name,
            *(right(pairs, n, [c for c in cases if c.seed == s]) for n in STEPS for s in seeds),
            share(n_told, len(pairs) * len(cases)),
            *(share(sum(c.right(t, "what-if", n) for c, t in zip(cases, told, strict=True)), n_told) for n in STEPS),
        )
    optimizers = Table("optimizer", *(f"{kind}, {n} steps" for kind in ("pairs with BNP", "others") for n in STEPS))
    for name in OPTIMIZERS:
        of = [c for c in cases if c.optimizer == name]
        optimizers.add(name, *(right(pairs, n, of) for pairs in (WITH_BNP, WITHOUT) for n in STEPS))
    predictors = Table("ranked by", *(f"pairs right, {n} steps" for n in STEPS))
    for name in cases[0].predicted:
        predictors.add(name, *(right(everything, n, cases, name) for n in STEPS))
    table = Table("case", "optimizer", "predicted, best first", f"in training, {soon} steps", "pairs right")
    for c in first:
        true = order({k: v[soon] for k, v in c.true.items()})
        table.add(c.network, c.optimizer, order(c.predicted["what-if"]), true, c.right(PAIRS, "what-if", soon))
    best = sum(
        min(CHANGES, key=c.predicted["what-if"].__getitem__) == min(CHANGES, key=lambda k: c.true[k][soon])
        for c in first
    )
    head = (
        f"Of the four normalizations the best after {soon} steps is named in {best} of {len(first)} cases, and of two "
        f"the better one in {right(PAIRS, soon, first)} (seed {first[0].seed})."
    )
    parts = (head, counts, optimizers, predictors, table)
    print("\n\n".join(map(str, parts)))
    if write:
        write_section("cases", *parts, page=PAGE)


def main() -> None:
    quick = arguments(__doc__, quick="one seed of three networks, and the page is left as it is").parse_args().quick
    torch.set_num_threads(1)
    seeds, networks = (SEEDS[:1], list(NETWORKS)[4:7]) if quick else (SEEDS, list(NETWORKS))
    asked = list(itertools.product(seeds, networks, OPTIMIZERS))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        cases = list(pool.map(measured, *zip(*((network, name, seed) for seed, network, name in asked), strict=True)))
    report(cases, write=not quick)


if __name__ == "__main__":
    main()
