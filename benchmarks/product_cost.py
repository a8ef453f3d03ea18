"""What does a product with a curvature matrix cost, in gradients, with and without kept graphs?

Gradients and products are timed in turn, in one run; the ratio is that of medians.

    python benchmarks/product_cost.py [--quick]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import wellcond as wc


def mlp() -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return model, torch.randn(512, 784)


def convolution() -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    model.extend([nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 10)])
    return model, torch.randn(128, 3, 32, 32)


class Transformer(nn.Module):
    """Three layers of width 128 and a readout of the mean token."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 3), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.encoder(x).mean(1))


def transformer() -> tuple[nn.Module, torch.Tensor]:
    return Transformer(), torch.randn(16, 64, 128)


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measured(build: Callable[[], tuple[nn.Module, torch.Tensor]], rounds: int) -> None:
    torch.manual_seed(0)
    model, inputs = build()
    problem = wc.Problem(model, nn.CrossEntropyLoss(), (inputs, torch.randint(10, (len(inputs),))))
    v = torch.randn(problem.size)
    H, G = wc.Hessian(problem), wc.GaussNewton(problem)
    times: dict[str, list[float]] = {key: [] for key in ("gradient", "H", "H kept", "G", "G kept")}
    for _ in range(rounds):
        times["gradient"].append(seconds(problem.gradient))
        times["H"].append(seconds(lambda: H @ v))
        times["G"].append(seconds(lambda: G @ v))
        with problem:
            H @ v, G @ v
            times["H kept"].append(seconds(lambda: H @ v))
            times["G kept"].append(seconds(lambda: G @ v))
    t = {key: statistics.median(values) for key, values in times.items()}
    ratios = "".join(f"{t[key] / t['gradient']:10.2f}" for key in ("H kept", "H", "G kept", "G"))
    print(f"{build.__name__:12} {problem.size:10,} {1e3 * t['gradient']:9.1f} ms {ratios}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer repetitions")
    rounds = 4 if arguments.parse_args().quick else 15
    print(
        f"{torch.get_num_threads()} threads; medians of {rounds} rounds; products in gradients, graphs kept or streamed"
    )
    headings = "".join(f"{heading:>10}" for heading in ("H kept", "H stream", "G kept", "G stream"))
    print(f"{'network':12} {'parameters':>10} {'gradient':>12} {headings}")
    for build in (mlp, convolution, transformer):
        measured(build, rounds)


if __name__ == "__main__":
    main()
