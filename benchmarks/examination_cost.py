"""What does an examination cost, in gradients of the whole loss?

A network of 100,000 parameters on 2,000 examples: the bound is 3,000 gradients, 300 with --quick (of the examination).
Trained, when nothing is to be tried, and after one epoch, when a normalization is tried from new weights.
Gradients and examinations are timed in turn, in one run; the ratio is that of medians.

    python benchmarks/examination_cost.py [--quick]
"""

import statistics
import time
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc
from measuring import seconds
from networks import train
from tables import arguments

BOUNDS = {True: 300, False: 3000}


def trained_run(batch_size: int, epochs: int) -> tuple[nn.Module, nn.Module, DataLoader, torch.optim.Optimizer]:
    torch.manual_seed(0)
    X = torch.randn(2000, 64)
    y = (X[:, :10] + 0.3 * torch.randn(2000, 10)).argmax(1)
    loader = DataLoader(TensorDataset(X, y), batch_size=batch_size, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 300), nn.ReLU(), nn.Linear(300, 20), nn.ReLU())
    model.append(nn.Linear(20, 10))
    loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters())
    for _ in range(epochs):
        train(model, loss_fn, optimizer, loader)
    return model, loss_fn, loader, optimizer


def gradient(model: nn.Module, loss_fn: nn.Module, batches: list) -> None:
    """A plain gradient over all batches, as a training loop would take it."""
    for inputs, targets in batches:
        torch.autograd.grad(loss_fn(model(inputs), targets), list(model.parameters()))


def main() -> None:
    repetitions, runs = 5, [(2000, 6), (2000, 1), (64, 6), (64, 1)]
    if arguments(__doc__, quick="fewer repetitions, two of the four runs").parse_args().quick:
        repetitions, runs = 1, [(2000, 6), (64, 1)]
    for batch_size, epochs in runs:
        model, loss_fn, loader, optimizer = trained_run(batch_size, epochs)
        batches = list(loader)
        size, threads = sum(p.numel() for p in model.parameters()), torch.get_num_threads()
        print(f"{size:,} parameters, 2,000 examples in {len(batches)} batches, {epochs} epochs, {threads} threads")
        for quick in (True, False):
            gradients, examinations, products = [], [], 0
            for _ in range(repetitions):
                gradients += [seconds(partial(gradient, model, loss_fn, batches)) for _ in range(10)]
                started = time.perf_counter()
                examination = wc.examine(model, loss_fn, loader, optimizer, quick=quick)
                examinations.append(time.perf_counter() - started)
                products = examination.measurements.products
                tried = [f.key for f in examination.findings if f.effect or "loss_with" in f.evidence]
            one, total = statistics.median(gradients), statistics.median(examinations)
            ratio, bound = total / one, BOUNDS[quick]
            judged = "within" if ratio <= bound else "OVER"
            print(
                f"  {'quick' if quick else 'thorough':9} {total:6.2f} s / {1e3 * one:5.2f} ms "
                f"= {ratio:6.0f} gradients ({judged} the bound of {bound}), {products} products; "
                f"tried: {', '.join(tried) or 'nothing'}"
            )


if __name__ == "__main__":
    main()
