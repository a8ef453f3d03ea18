"""Digits in batches of 1, 2 and 4, where batch norm has little or nothing to average: its preconditioner instead.

python examples/small_batches.py            # learning rates × 5 seeds: a table, and a plot in small_batches.html
python examples/small_batches.py --quick    # three learning rates, one seed, fewer steps
python examples/small_batches.py --write-docs    # also put the table into docs/normalization.md
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import wellcond as wc

WAYS = {"plain": "99, 110, 250", "layer norm": "0, 150, 110", "batch norm": "176, 150, 40", "BNP": "214, 39, 40"}  # RGB
BATCHES = (1, 2, 4)
RATES = tuple(1e-3 * 10 ** (k / 2) for k in range(10))  # 1e-3 … 31.6
STEPS = 1500
POINTS = 30  # of each curve
Curves = dict[float, list[list[float]]]  # learning rate → a curve a seed


def network(way: str) -> nn.Module:
    norm = {"layer norm": nn.LayerNorm, "batch norm": nn.BatchNorm1d}.get(way)
    layers: list[nn.Module] = []
    for fan_in in (64, 32):
        layers += [nn.Linear(fan_in, 32), *([norm(32)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def train(way: str, batch: int, rate: float, seed: int, steps: int) -> list[float]:
    """The loss over all the data, as inference sees it, at `POINTS` moments; infinite once it is not finite."""
    torch.manual_seed(seed)
    X, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    X = X.float() / 16
    model = network(way)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    if way == "BNP":
        wc.precondition(optimizer, wc.BatchNormPreconditioner(model))  # the one line
    curve: list[float] = []
    for step, chosen in enumerate(torch.randint(len(X), (steps, batch)), start=1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[chosen]), y[chosen]).backward()
        optimizer.step()
        if step % (steps // POINTS) == 0:
            curve.append(whole_loss(model, X, y))
            if not math.isfinite(curve[-1]):
                return curve[:-1] + [math.inf] * (POINTS + 1 - len(curve))
    return curve


@torch.no_grad()
def whole_loss(model: nn.Module, X: Tensor, y: Tensor) -> float:
    model.eval()
    loss = float(nn.functional.cross_entropy(model(X), y))
    model.train()
    return loss


def best(curves: Curves) -> tuple[float, list[list[float]]]:
    """The learning rate with the least mean loss at the end, and its curves."""
    return min(curves.items(), key=lambda item: mean_std([curve[-1] for curve in item[1]])[0])


def mean_std(values: list[float]) -> tuple[float, float]:
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(x.std()) if len(values) > 1 else 0.0


def steps_to(level: float, curves: list[list[float]], steps: int) -> float:
    """Steps until the mean curve is at a level; infinite where it never is."""
    for k in range(POINTS):
        if mean_std([curve[k] for curve in curves])[0] <= level:
            return (k + 1) * (steps // POINTS)
    return math.inf


def headings(steps: int) -> list[str]:
    return ["batch", "way", "learning rate", f"loss after {steps:,} steps", "steps to the plain one's loss"]


def rows(results: dict[tuple[int, str], Curves], steps: int) -> list[list[str]]:
    found = []
    for batch in BATCHES:
        plain = mean_std([curve[-1] for curve in best(results[batch, "plain"])[1]])[0]
        for way in WAYS:
            if (batch, way) not in results:
                found.append([str(batch), way, "–", "not defined", "–"])
                continue
            rate, curves = best(results[batch, way])
            mean, std = mean_std([curve[-1] for curve in curves])
            needed = steps_to(plain, curves, steps)
            reached = f"{needed:,.0f}" if math.isfinite(needed) else "never"
            edge = " (first or last tried)" if rate in (min(results[batch, way]), max(results[batch, way])) else ""
            found.append([str(batch), way, f"{rate:.2g}{edge}", f"{mean:.3f} ± {std:.3f}", reached])
    return found


def table(results: dict[tuple[int, str], Curves], steps: int) -> Table:
    out = Table(title="Digits, a 64-32-32-10 network, SGD: each way with its best learning rate")
    for heading in headings(steps):
        out.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows(results, steps):
        out.add_row(*row, end_section=row[1] == list(WAYS)[-1])
    return out


def write_docs(results: dict[tuple[int, str], Curves], steps: int) -> None:
    """The table, between the markers of docs/normalization.md."""
    root = Path(__file__).parent.parent
    sys.path.insert(0, str(root / "benchmarks"))
    import tables

    page = tables.Table(*headings(steps))
    for row in rows(results, steps):
        page.add(*row)
    tables.write_section("small batches", page, page=root / "docs" / "normalization.md")


def plot(results: dict[tuple[int, str], Curves], steps: int) -> go.Figure:
    titles = [f"batches of {batch}" for batch in BATCHES]
    figure = make_subplots(1, len(BATCHES), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    x = [(k + 1) * (steps // POINTS) for k in range(POINTS)]
    for column, batch in enumerate(BATCHES, start=1):
        for way, color in WAYS.items():
            if (batch, way) not in results:
                continue
            rate, curves = best(results[batch, way])
            means = [mean_std([curve[k] for curve in curves])[0] for k in range(POINTS)]
            low, high = ([f(curve[k] for curve in curves) for k in range(POINTS)] for f in (min, max))
            band = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "mode": "lines"}
            figure.add_scatter(x=x, y=high, **band, row=1, col=column)
            figure.add_scatter(x=x, y=low, fill="tonexty", fillcolor=f"rgba({color}, 0.15)", **band, row=1, col=column)
            figure.add_scatter(
                x=x,
                y=means,
                name=way,
                legendgroup=way,
                showlegend=column == len(BATCHES),
                line={"color": f"rgb({color})"},
                hovertemplate=f"{way}, learning rate {rate:.2g}<br>step %{{x}}: %{{y:.3f}}",
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="steps")
    figure.update_yaxes(type="log", tickvals=[0.01, 0.03, 0.1, 0.3, 1, 3])
    figure.update_yaxes(title_text="training loss (nats)", col=1)
    figure.update_layout(
        title="Digits, SGD, each way with its best learning rate: mean and range over seeds",
        template="plotly_white",
        legend={"orientation": "h", "y": -0.2},
        height=480,
        margin={"t": 90, "r": 20},
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three learning rates, one seed, 300 steps")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/normalization.md")
    parser.add_argument("--output", type=Path, default=Path("small_batches.html"))
    given = parser.parse_args()
    torch.set_num_threads(1)  # the network is tiny
    seeds, steps, rates = (1, 300, RATES[3:8:2]) if given.quick else (given.seeds, STEPS, RATES)
    # A batch of one has no batch statistics.
    runs = [(batch, way) for batch in BATCHES for way in WAYS if not (batch == 1 and way == "batch norm")]
    console = Console()
    results = {
        (batch, way): {rate: [train(way, batch, rate, seed, steps) for seed in range(seeds)] for rate in rates}
        for batch, way in track(runs, "training", console=console, transient=True)
    }
    console.print(table(results, steps))
    if given.write_docs:
        write_docs(results, steps)
    plot(results, steps).write_html(given.output, include_plotlyjs=True, config={"responsive": True})
    console.print(f"{seeds} seeds; mean ± standard deviation over seeds. Plot: {given.output}")


if __name__ == "__main__":
    main()
