"""Does `wc.what_if` name the normalization that is better in training?

Twenty cases: ten networks on scikit-learn's digits, wine, breast cancer and diabetes, each with SGD and with Adam. In
each, the network as it is and with three normalizations, all from the same function where that can be, is trained by
full-batch steps at sixteen (SGD) or nine (Adam) learning rates; the lowest loss at the last step counts. Every pair of
variants is a question: which of the two has the lower loss? Writes the tables of docs/what-if.md.

    python benchmarks/what_if.py [--quick]
"""

import argparse
import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import Tensor, nn

import wellcond as wc
from tables import Table, write_section
from wellcond.what_if import WhatIf, what_if

PAGE = Path(__file__).parent.parent / "docs" / "what-if.md"
CHANGES = ["standardize inputs", "batch norm", "layer norm"]
SHORT = {"as it is": "as it is", "standardize inputs": "standardized", "batch norm": "batch", "layer norm": "layer"}
PAIRS = list(itertools.combinations(CHANGES, 2))
WITH_NONE = [("as it is", change) for change in CHANGES]
STEPS = (60, 100)
SEEDS = (3, 4, 5)  # 0, 1 and 2 were looked at while the prediction was built
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float, list[float]]] = {
    "SGD": (torch.optim.SGD, 0.1, [10 ** (k / 2) for k in range(-12, 4)]),
    "Adam": (torch.optim.Adam, 1e-3, [10 ** (k / 2) for k in range(-8, 1)]),
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
    found: WhatIf
    predicted: dict[str, dict[str, float]]  # predictor → variant → its figure, lower is better
    true: dict[str, dict[int, float]]

    def right(self, pairs: list[tuple[str, str]], predictor: str, steps: int) -> int:
        figure = self.predicted[predictor]
        return sum((figure[a] - figure[b]) * (self.true[a][steps] - self.true[b][steps]) > 0 for a, b in pairs)

    def told(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The pairs whose intervals tell which is better."""
        loss = {name: v.predicted for name, v in self.found.variants.items()}
        return [(a, b) for a, b in pairs if loss[a].high < loss[b].low or loss[b].high < loss[a].low]


def trained(model: nn.Module, data: Data, name: str) -> dict[int, float]:
    """The lowest loss over the learning rates after each of `STEPS`."""
    X, y, loss_fn = data
    make, _, rates = OPTIMIZERS[name]
    lowest = dict.fromkeys(STEPS, math.inf)
    for rate in rates:
        twin = copy.deepcopy(model)
        optimizer = make(twin.parameters(), lr=rate)
        for step in range(max(STEPS) + 1):
            optimizer.zero_grad()
            loss = loss_fn(twin(X), y)
            if not math.isfinite(loss.item()):
                break
            if step in lowest:
                lowest[step] = min(lowest[step], loss.item())
            loss.backward()
            optimizer.step()
    return lowest


def measured(network: str, name: str, seed: int) -> Case:
    get, build = NETWORKS[network]
    data = get()
    torch.manual_seed(seed)
    model = build().double()
    make, rate, _ = OPTIMIZERS[name]
    problem = wc.Problem(model, data[2], data[:2])
    optimizer = make(model.parameters(), lr=rate)
    found = what_if(problem, optimizer, CHANGES)
    at_start = what_if(problem, optimizer, CHANGES, warm_up=0, figures=False)
    variants = found.variants
    predicted = {
        "what-if": {k: v.predicted.value for k, v in variants.items()},
        "its loss after the warm-up": {k: v.loss for k, v in variants.items()},
        "forecast at the start (warm_up=0)": {k: v.predicted.value for k, v in at_start.variants.items()},
        "κ_eff of PᵀHP at the start": {k: _kappa(v.conditioning) for k, v in variants.items()},
    }
    true = {k: trained(v.model, data, name) for k, v in variants.items()}
    return Case(network, name, seed, found, predicted, true)


def _kappa(conditioning: wc.Conditioning | None) -> float:
    return conditioning.kappa_effective.value if conditioning else math.nan


def order(figures: dict[str, float]) -> str:
    return ", ".join(SHORT[name] for name in sorted(CHANGES, key=figures.__getitem__))


def report(cases: list[Case], write: bool) -> None:
    last, first = max(STEPS), [c for c in cases if c.seed == cases[0].seed]
    table = Table("case", "optimizer", "predicted, best first", f"in training, {last} steps", "pairs right")
    for c in first:
        losses = {k: v[last] for k, v in c.true.items()}
        table.add(c.network, c.optimizer, order(c.predicted["what-if"]), order(losses), c.right(PAIRS, "what-if", last))
    seeds = list(dict.fromkeys(c.seed for c in cases))
    counts = Table(
        "which is better", *(f"seed {s}, {n} steps" for n in STEPS for s in seeds), "told apart, of those right"
    )
    for pair in PAIRS + WITH_NONE:
        cells = [
            f"{sum(c.right([pair], 'what-if', n) for c in cases if c.seed == s)} of {len(first)}"
            for n in STEPS
            for s in seeds
        ]
        told = [c for c in cases if c.told([pair])]
        counts.add(" or ".join(pair), *cells, share(sum(c.right([pair], "what-if", last) for c in told), len(told)))
    predictors = Table("ranked by", *(f"pairs right, {n} steps" for n in STEPS))
    everything = PAIRS + WITH_NONE
    for name in cases[0].predicted:
        total = len(everything) * len(cases)
        predictors.add(name, *(share(sum(c.right(everything, name, n) for c in cases), total) for n in STEPS))
    best = sum(
        min(CHANGES, key=c.predicted["what-if"].__getitem__) == min(CHANGES, key=lambda k: c.true[k][last])
        for c in first
    )
    head = (
        f"The best of the three normalizations is named in {best} of {len(first)} cases, and of two the better one in "
        f"{share(sum(c.right(PAIRS, 'what-if', last) for c in first), len(PAIRS) * len(first))} (seed {first[0].seed})."
    )
    parts = (head, counts, predictors, table)
    print("\n\n".join(map(str, parts)))
    if write:
        write_section("cases", *parts, page=PAGE)


def share(right: int, of: int) -> str:
    return f"{right} of {of} ({100 * right / of:.0f} %)" if of else "–"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--quick", action="store_true", help="one seed of three networks, and the page is left as it is"
    )
    quick = arguments.parse_args().quick
    torch.set_num_threads(1)
    cases = [
        measured(network, name, seed)
        for seed in SEEDS[: 1 if quick else None]
        for network in list(NETWORKS)[: 3 if quick else None]
        for name in OPTIMIZERS
    ]
    report(cases, write=not quick)


if __name__ == "__main__":
    main()
