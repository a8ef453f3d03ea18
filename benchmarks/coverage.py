"""Do the intervals of `wc.conditioning` hold what they state?

Five small networks of different kinds, the Hessian, Gauss-Newton and PᵀHP of each (P read off Adam), every figure of
theory 2.2: the interval from few products against the dense answer, over seeds that set the network, its training and
the random directions. Beside the coverage the median distances of both ends, answer/low and high/answer (for fractions
and counts the differences, as shares of n; for the smallest eigenvalue as shares of λ_max), and how many intervals had
no upper end, lest coverage be had for nothing. κ_eff is bounded from below only (theory, section 2.2).

    python benchmarks/coverage.py [--quick] [--seeds N]
"""

import itertools
import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

import wellcond as wc
from networks import train
from tables import arguments
from wellcond.linalg import SymmetricOperator

EFFORT = wc.Effort(extremes=40, probes=6, probe_steps=16, gradient_steps=24)
"""160 products for matrices of 200 to 500 rows, so that nothing is found whole."""

THRESHOLDS = (0.01, 0.1, 0.5)


class Attention(nn.Module):
    """Embedded pixels' rows, attending to one another, with layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 5)
        self.embed = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return self.out((x + torch.softmax(q @ k.mT / 2, dim=-1) @ v).mean(1))


class Recurrent(nn.Module):
    """A GRU and a readout of its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(4, 7, batch_first=True), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0][:, -1])


def tanh_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 5))


def relu_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 5))


def convolution() -> nn.Module:
    layers = [nn.Conv1d(6, 10, 3, padding=1), nn.BatchNorm1d(10), nn.Tanh(), nn.Flatten(), nn.Linear(40, 5)]
    return nn.Sequential(*layers)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tanh MLP": tanh_mlp,
    "ReLU MLP": relu_mlp,
    "convolution": convolution,
    "attention": Attention,
    "GRU": Recurrent,
}


def trained(build: Callable[[], nn.Module], seed: int) -> tuple[wc.Problem, wc.Preconditioner]:
    """A network that has taken a few steps with Adam towards labels of its data's own making."""
    torch.manual_seed(seed)
    X = torch.randn(60, 6, 4, dtype=torch.float64)
    y = X.flatten(1).mm(torch.randn(24, 5, dtype=torch.float64)).argmax(1)
    model, loss_fn = build().double(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train(model, loss_fn, optimizer, itertools.repeat((X, y), 20 + 3 * (seed % 20)))
    return wc.Problem(model, loss_fn, (X, y)), wc.preconditioner_of(optimizer)


def compared(
    dense: wc.results.Conditioning, sampled: wc.results.Conditioning
) -> dict[str, tuple[wc.results.Estimate, float, float]]:
    """Of each figure the interval, the dense answer at the same θ, and the figure's full range (0: none)."""
    spectrum, n = dense.spectrum, dense.size
    assert spectrum is not None
    top = float(spectrum[-1])
    kept = spectrum[spectrum > sampled.theta * top].flip(0)
    figures = {
        "largest": (sampled.largest, dense.largest.value, 0.0),
        "smallest": (sampled.smallest, dense.smallest.value, top),
        "kappa_mean": (sampled.kappa_mean, dense.kappa_mean.value, 0.0),
        "kappa_effective": (sampled.kappa_effective, dense.kappa_effective.value, 0.0),
        "negative_fraction": (
            sampled.negative_fraction,
            float((spectrum < -sampled.theta * top).double().mean()),
            1.0,
        ),
    }
    for rho in (0.5, 0.9):
        answer = float(kept[0] / kept[math.ceil(rho * len(kept) - 1e-9) - 1])
        figures[f"kappa({rho})"] = (sampled.kappa(rho), answer, 0.0)
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64) * top
    for part, x, low, high in zip(THRESHOLDS, thresholds, *sampled.counts_above(thresholds), strict=True):
        count = float((spectrum >= x).sum())
        figures[f"count ≥ {part} λ_max"] = (
            wc.results.Estimate(count, float(low), float(high), "bounds"),
            count,
            float(n),
        )
    return figures


def distances(estimate: wc.results.Estimate, answer: float, whole: float) -> tuple[float, float]:
    """Of the lower and of the upper end from the answer: factors, or differences as shares of the whole."""
    if whole:
        return (answer - estimate.low) / whole, (estimate.high - answer) / whole
    return answer / estimate.low if estimate.low > 0 else math.inf, estimate.high / answer


def main() -> None:
    parser = arguments(__doc__, quick="10 seeds")
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    seeds = 10 if options.quick else options.seeds
    torch.set_default_dtype(torch.float64)
    print(f"times in {seeds} that the interval holds the answer (distance of low, of high; without upper end)")
    for name, build in NETWORKS.items():
        found: dict[str, dict[str, list[tuple[bool, float, float]]]] = {}
        for seed in range(seeds):
            problem, P = trained(build, seed)
            with problem:
                operators: dict[str, SymmetricOperator] = {"H": wc.Hessian(problem), "G": wc.GaussNewton(problem)}
                operators["PᵀHP"] = wc.Hessian(problem).preconditioned(P)
                for kind, operator in operators.items():
                    dense = wc.conditioning(operator)
                    sampled = wc.conditioning(operator, dense_limit=0, effort=EFFORT, seed=seed)
                    for figure, (estimate, answer, whole) in compared(dense, sampled).items():
                        slack = 1e-9 * (abs(answer) + dense.largest.value)
                        held = estimate.low - slack <= answer <= estimate.high + slack
                        row = found.setdefault(figure, {}).setdefault(kind, [])
                        row.append((held, *distances(estimate, answer, whole)))
        print(f"\n{name}, n = {problem.size}")
        for figure, by_kind in found.items():
            cells = []
            for kind, rows in by_kind.items():
                below, above = (statistics.median(row[i] for row in rows) for i in (1, 2))
                endless = sum(math.isinf(row[2]) for row in rows)
                held = sum(row[0] for row in rows)
                cells.append(f"{kind} {held:3d} ({below:.3g} {above:.3g}; {endless:3d})")
            print(f"  {figure:18} {'   '.join(f'{cell:28}' for cell in cells)}", flush=True)


if __name__ == "__main__":
    main()
