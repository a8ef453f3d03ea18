"""What do `precondition` and `reparameterize` cost, in steps of the optimizer and in training steps without them?

The optimizer's step on the parameters of optimizer_step.py, with a diagonal P of full size, compiled where that can be
and not; and a training step of an MLP 784-512-512-10 at batch 128, with that P and with a `BatchNormPreconditioner`,
which moves under `precondition` and is constant under `reparameterize`. All are run in turn in every round; a ratio is
the median over rounds.

    python benchmarks/reparameterization.py [--quick] [--write-docs]
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

import measuring
import wellcond as wc
from networks import mlp, train
from optimizer_step import parameters, sizes
from tables import DOCS, Table, arguments, machine, write_section

PAGE = DOCS / "preconditioning.md"
BUILD: dict[str, Callable[[Sequence[nn.Parameter]], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "SGD, momentum, decay": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=1e-4),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-5),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-5, fused=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-5),
}
COMPILED = set(BUILD) - {"NAdam"}
ATTACH = (wc.precondition, wc.reparameterize)
# In steps without P, by column of the tables; of compiling in seconds.
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


def diagonal(chosen: Sequence[nn.Parameter]) -> wc.DiagonalPreconditioner:
    generator = torch.Generator().manual_seed(2)
    return wc.DiagonalPreconditioner(chosen, [torch.rand(p.shape, generator=generator) + 0.5 for p in chosen])


def over_the_first(what: str, variants: dict[str, measuring.Action], count: int) -> list[float]:
    """Milliseconds of the first variant at best, and what the others take of it, over paired rounds.

    What is over its bound is printed.
    """
    taken = measuring.rounds(variants, count, warm=3)  # compiled, and with its memory, by then
    first, *others = variants
    ratios = measuring.ratios(taken, first)
    for name in others:
        if ratios[name] > BOUNDS[name]:
            print(f"{what}: {name} takes {ratios[name]:.2f}, which is over the bound of {BOUNDS[name]}")
    return [1e3 * min(taken[first]), *(ratios[name] for name in others)]


def compiling() -> str:
    """How long the first compiled step of this process takes."""
    chosen = parameters([1000])
    optimizer = BUILD["AdamW, fused"](chosen)
    wc.reparameterize(optimizer, diagonal(chosen), compile=True)
    taken = measuring.seconds(optimizer.step)
    return f"compiling takes {taken:.1f} s, {'within' if taken <= COMPILING else 'OVER'} the bound of {COMPILING:g} s"


def steps(rounds: int) -> Table:
    """The optimizer's step alone."""
    cases = [(attach, compiled) for compiled in (False, True) for attach in ATTACH]
    names = [f"{attach.__name__}{', compiled' * compiled}" for attach, compiled in cases]
    table = Table("parameters, tensors", "optimizer", "its step, ms", *names)
    for total, tensors in ((16_000_000, 48), (10_000_000, 160)):
        for name, build in BUILD.items():
            variants: dict[str, measuring.Action] = {}
            mine = [("", None, False), *((n, *case) for n, case in zip(names, cases, strict=True))]
            for variant, attach, compiled in mine if name in COMPILED else mine[:3]:
                chosen = parameters(sizes(total, tensors, "shuffled"))
                optimizer = build(chosen)
                if attach:
                    attach(optimizer, diagonal(chosen), compile=compiled)
                variants[variant] = optimizer.step
            row = over_the_first(f"{total:,}, {tensors}, {name}", variants, rounds)
            table.add(f"{total:,}, {tensors}", name, *row, *[None] * (1 + len(names) - len(row)))
    return table


def training(rounds: int) -> Table:
    """A training step: forward, backward, step."""
    cases = {f"{attach.__name__}, {kind}": (attach, kind) for attach in ATTACH for kind in ("diagonal", "batch norm")}
    table = Table("optimizer", "a training step, ms", *cases)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(128, 784, generator=generator), torch.randint(10, (128,), generator=generator)
    for name, build in BUILD.items():
        variants = {case: training_step(build, *given, x, y) for case, given in {"": (None, ""), **cases}.items()}
        table.add(name, *over_the_first(name, variants, 8 * rounds))
    return table


def training_step(
    build: Callable[[Sequence[nn.Parameter]], Optimizer], attach: object, kind: str, x: torch.Tensor, y: torch.Tensor
) -> Callable[[], None]:
    torch.manual_seed(0)
    model, _ = mlp()
    optimizer = build(list(model.parameters()))
    if callable(attach):
        P = diagonal(list(model.parameters())) if kind == "diagonal" else wc.BatchNormPreconditioner(model)
        if attach is wc.reparameterize and isinstance(P, wc.BatchNormPreconditioner):
            model(x)
            P.remove()
        attach(optimizer, P)
    return partial(train, model, nn.CrossEntropyLoss(), optimizer, [(x, y)])


def main() -> None:
    given = arguments(__doc__, quick="fewer repetitions", page=PAGE).parse_args()
    torch.set_num_threads(2)
    rounds = 7 if given.quick else 40
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        print(compiling())
        for name, measure in (("training step", training), ("optimizer step", steps)):
            table = measure(rounds)
            print(f"{table}\n{machine()}\n", flush=True)
            if given.write_docs:
                write_section(name, table, page=PAGE)


if __name__ == "__main__":
    main()
