"""What do `precondition` and `reparameterize` cost, in steps of the optimizer and in training steps without them?

The optimizer's step on the parameters of optimizer_step.py, with a diagonal P of full size, compiled where that can be
and not; and a training step of an MLP 784-512-512-10 at batch 128, with that P and with a `BatchNormPreconditioner`,
which moves under `precondition` and is constant under `reparameterize`. All are run in turn in every round; a ratio is
the median over rounds.

    python benchmarks/reparameterization.py [--quick] [--write-docs]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

import wellcond as wc
from optimizer_step import parameters, sizes
from tables import Table, machine, write_section

PAGE = Path(__file__).parent.parent / "docs" / "preconditioning.md"
BUILD: dict[str, Callable[[Sequence[nn.Parameter]], Optimizer]] = {
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-5),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-5, fused=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-5),
}
ATTACH = (wc.precondition, wc.reparameterize)
# Of the columns below, in steps without P; of compiling in seconds.
BOUNDS = {
    "precondition": 2.4,
    "reparameterize": 3.5,
    "precondition, compiled": 2.0,
    "reparameterize, compiled": 2.0,
    "precondition, diagonal": 1.25,
    "reparameterize, diagonal": 1.25,
    "precondition, batch norm": 1.4,
    "reparameterize, batch norm": 1.4,
}
COMPILING = 15.0
COMPILED = set(BUILD) - {"NAdam"}


def diagonal(chosen: Sequence[nn.Parameter]) -> wc.Diagonal:
    generator = torch.Generator().manual_seed(2)
    return wc.Diagonal(chosen, [torch.rand(p.shape, generator=generator) + 0.5 for p in chosen])


def ratios(variants: Sequence[Callable[[], object]], rounds: int) -> tuple[float, list[float]]:
    """Seconds of the first variant at best, and what the others take of it, over paired rounds."""
    times = []
    for i in range(rounds + 3):
        taken = []
        for run in variants:
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
        if i >= 3:  # compiled, and with its memory, by then
            times.append(taken)
    others = range(1, len(variants))
    return min(t[0] for t in times), [statistics.median(t[i] / t[0] for t in times) for i in others]


def steps(rounds: int) -> Table:
    """The optimizer's step alone."""
    cases = [(attach, compiled) for compiled in (False, True) for attach in ATTACH]
    names = [f"{attach.__name__}{', compiled' * compiled}" for attach, compiled in cases]
    table = Table("parameters, tensors", "optimizer", "its step, ms", *names)
    for total, tensors in ((16_000_000, 48), (10_000_000, 160)):
        for name, build in BUILD.items():
            variants = []
            for attach, compiled in (None, False), *(cases if name in COMPILED else cases[:2]):
                chosen = parameters(sizes(total, tensors, "shuffled"))
                optimizer = build(chosen)
                if attach:
                    attach(optimizer, diagonal(chosen), compile=compiled)
                variants.append(optimizer.step)
            best, others = ratios(variants, rounds)
            judge(f"{total:,}, {tensors}, {name}", names, others)
            table.add(f"{total:,}, {tensors}", name, 1e3 * best, *others, *[None] * (len(names) - len(others)))
    return table


def judge(what: str, names: Sequence[str], ratios: Sequence[float]) -> None:
    """Say which ratios are over their bounds."""
    for name, ratio in zip(names, ratios, strict=False):
        if ratio > BOUNDS[name]:
            print(f"{what}: {name} takes {ratio:.2f}, which is over the bound of {BOUNDS[name]}")


def compiling() -> str:
    """How long the first compiled step of this process takes."""
    chosen = parameters([1000])
    optimizer = BUILD["AdamW, fused"](chosen)
    wc.reparameterize(optimizer, diagonal(chosen), compile=True)
    started = time.perf_counter()
    optimizer.step()
    taken = time.perf_counter() - started
    return f"compiling takes {taken:.1f} s, {'within' if taken <= COMPILING else 'OVER'} the bound of {COMPILING:g} s"


def training(rounds: int) -> Table:
    """A training step: forward, backward, step."""
    cases = [(attach, kind) for attach in ATTACH for kind in ("diagonal", "batch norm")]
    names = [f"{attach.__name__}, {kind}" for attach, kind in cases]
    table = Table("optimizer", "a training step, ms", *names)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(128, 784, generator=generator), torch.randint(10, (128,), generator=generator)
    for name, build in BUILD.items():
        variants = [training_step(build, None, "", x, y), *(training_step(build, *case, x, y) for case in cases)]
        best, others = ratios(variants, 8 * rounds)
        judge(name, names, others)
        table.add(name, 1e3 * best, *others)
    return table


def training_step(
    build: Callable[[Sequence[nn.Parameter]], Optimizer], attach: object, kind: str, x: torch.Tensor, y: torch.Tensor
) -> Callable[[], None]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = build(list(model.parameters()))
    if callable(attach):
        P = diagonal(list(model.parameters())) if kind == "diagonal" else wc.BatchNormPreconditioner(model)
        if attach is wc.reparameterize and isinstance(P, wc.BatchNormPreconditioner):
            model(x)
            P.remove()
        attach(optimizer, P)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--write-docs", action="store_true", help=f"write the tables to {PAGE.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    rounds = 7 if arguments.quick else 40
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        print(compiling())
        for name, measure in (("training step", training), ("optimizer step", steps)):
            table = measure(rounds)
            print(f"{table}\n{machine()}\n", flush=True)
            if arguments.write_docs:
                write_section(name, table, page=PAGE)


if __name__ == "__main__":
    main()
