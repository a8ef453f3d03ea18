"""L1 under Adam on scikit-learn's digits: in the loss, and in the three spaces of `wc.regularize`.

python examples/sparse_digits.py            # strengths × 5 seeds: a table, and a plot in sparse_digits.html
python examples/sparse_digits.py --quick    # two strengths, two seeds
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import wellcond as wc

STRENGTHS = {
    "in the loss": (1e-4, 3e-4, 1e-3, 3e-3, 5e-3),
    "euclidean": (0.03, 0.1, 0.3, 0.6, 0.7),
    "original": (1e-4, 3e-4, 1e-3, 3e-3, 5e-3),
    "intrinsic": (0.003, 0.01, 0.03, 0.05, 0.07),
}
SYMBOLS = {"in the loss": "x", "euclidean": "triangle-up", "original": "square", "intrinsic": "circle"}
EPOCHS = 40
FIGURES = ("zeros", "accuracy", "zeros_cut", "accuracy_cut")
CUT = 1e-2  # weights under this are set to zero after training, in the last two columns


@dataclass(frozen=True)
class Result:
    """One trained network: exact zeros among its weights and test accuracy, as trained and with small weights cut."""

    zeros: float
    accuracy: float
    zeros_cut: float
    accuracy_cut: float


def data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    X, y = load_digits(return_X_y=True)
    split = train_test_split(X / 16, y, test_size=0.3, random_state=seed, stratify=y)
    X_train, X_test = (torch.tensor(x, dtype=torch.float32) for x in split[:2])
    return X_train, X_test, torch.tensor(split[2]), torch.tensor(split[3])


def train(way: str, strength: float, seed: int, epochs: int = EPOCHS) -> Result:
    torch.manual_seed(seed)
    X, X_test, y, y_test = data(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    weights = [p for p in model.parameters() if p.dim() == 2]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    if way != "in the loss":
        wc.regularize(optimizer, wc.penalties.L1(strength), space=way)  # the one line
    for _ in range(epochs):
        for batch in torch.randperm(len(X)).split(64):
            loss = nn.functional.cross_entropy(model(X[batch]), y[batch])
            if way == "in the loss":
                loss = loss + strength * sum(w.abs().sum() for w in weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    figures = []
    with torch.no_grad():
        for cut in (0.0, CUT):
            for w in weights:
                w[w.abs() < cut] = 0
            zeros = torch.cat([w.flatten() for w in weights]) == 0
            figures += [float(zeros.float().mean()), float((model(X_test).argmax(1) == y_test).float().mean())]
    return Result(*figures)


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation, in percent."""
    x = 100 * torch.tensor(values)
    return float(x.mean()), float(x.std()) if len(values) > 1 else 0.0


def table(results: dict[tuple[str, float], list[Result]]) -> Table:
    out = Table(title="L1 on the weights of a 64-32-10 network, Adam")
    for column in ("L1", "strength", "exact\nzeros %", "test\naccuracy %", "zeros %,\ncut", "accuracy %,\ncut"):
        out.add_column(column, justify="left" if column == "L1" else "right", no_wrap=True)
    last = None
    for (way, strength), runs in results.items():
        if last not in (None, way):
            out.add_section()
        cells = [spread([getattr(run, key) for run in runs]) for key in FIGURES]
        out.add_row(way if way != last else "", f"{strength:g}", *(f"{mean:.1f} ± {s:.1f}" for mean, s in cells))
        last = way
    return out


def plot(results: dict[tuple[str, float], list[Result]]) -> go.Figure:
    figure = go.Figure()
    for way in STRENGTHS:
        chosen = [(s, runs) for (name, s), runs in results.items() if name == way]
        for cut in ("", "_cut"):
            if cut and way != "in the loss":
                continue
            x, y = ([spread([getattr(run, key + cut) for run in runs]) for _, runs in chosen] for key in FIGURES[:2])
            figure.add_scatter(
                x=[mean for mean, _ in x],
                y=[mean for mean, _ in y],
                error_x={"array": [s for _, s in x]},
                error_y={"array": [s for _, s in y]},
                text=[f"strength {s:g}" for s, _ in chosen],
                mode="lines+markers",
                marker={"symbol": SYMBOLS[way] + ("-open" if cut else ""), "size": 9},
                line={"dash": "dot" if cut else "solid"},
                name=f"{way}{f', cut at {CUT:g}' if cut else ''} ({chosen[0][0]:g} … {chosen[-1][0]:g})",
            )
    figure.update_layout(
        title="Digits: accuracy against zeros",
        xaxis_title="weights that are exactly zero (%)",
        yaxis_title="test accuracy (%)",
        template="plotly_white",
        legend={
            "title": {"text": "L1 (strengths, left to right)", "side": "top"},
            "orientation": "h",
            "y": -0.2,
        },
        margin={"t": 60, "r": 20},
        height=560,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two strengths and two seeds, 10 epochs")
    parser.add_argument("--output", type=Path, default=Path("sparse_digits.html"))
    given = parser.parse_args()
    torch.set_num_threads(1)  # the network is tiny
    seeds, epochs = (2, 10) if given.quick else (given.seeds, EPOCHS)
    runs = [(way, s) for way, all_ in STRENGTHS.items() for s in (all_[2:4] if given.quick else all_)]
    console = Console()
    results = {
        (way, strength): [train(way, strength, seed, epochs) for seed in range(seeds)]
        for way, strength in track(runs, "training", console=console, transient=True)
    }
    console.print(table(results))
    plot(results).write_html(given.output, include_plotlyjs=True, config={"responsive": True})
    console.print(f"{seeds} seeds, {epochs} epochs; mean ± standard deviation over seeds. Plot: {given.output}")


if __name__ == "__main__":
    main()
