"""What do `precondition` and `reparameterize` cost, in steps of the optimizer and in training steps without them?

The optimizer's step on the parameters of optimizer_step.py, with a diagonal P of full size; and a training step of an
MLP 784-512-512-10 at batch 128, with that P and with a `BatchNormPreconditioner`, which moves under `precondition` and
is constant under `reparameterize`. All are run in turn in every round; a ratio is the median over rounds.

    python benchmarks/reparameterization.py [--quick] [--write-docs]
"""

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
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-5),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-5, fused=True),
}
ATTACH = (wc.precondition, wc.reparameterize)


def diagonal(chosen: Sequence[nn.Parameter]) -> wc.Diagonal:
    generator = torch.Generator().manual_seed(2)
    return wc.Diagonal(chosen, [torch.rand(p.shape, generator=generator) + 0.5 for p in chosen])


def over_the_first(variants: dict[str, measuring.Action], count: int) -> list[float]:
    """Milliseconds of the first variant at best, and what the others take of it, over paired rounds."""
    taken = measuring.rounds(variants, count, warm=3)  # compiled, and with its memory, by then
    first, *others = variants
    ratios = measuring.ratios(taken, first)
    return [1e3 * min(taken[first]), *(ratios[name] for name in others)]


def steps(rounds: int) -> Table:
    """The optimizer's step alone."""
    table = Table("parameters, tensors", "optimizer", "its step, ms", *(f"with {a.__name__}" for a in ATTACH))
    for total, tensors in ((16_000_000, 48), (10_000_000, 160)):
        for name, build in BUILD.items():
            variants: dict[str, measuring.Action] = {}
            for attach in (None, *ATTACH):
                chosen = parameters(sizes(total, tensors, "shuffled"))
                optimizer = build(chosen)
                if attach:
                    attach(optimizer, diagonal(chosen))
                variants[attach.__name__ if attach else ""] = optimizer.step
            table.add(f"{total:,}, {tensors}", name, *over_the_first(variants, rounds))
    return table


def training(rounds: int) -> Table:
    """A training step: forward, backward, step."""
    cases = [(attach, kind) for attach in ATTACH for kind in ("diagonal", "batch norm")]
    table = Table("optimizer", "a training step, ms", *(f"{attach.__name__}, {kind}" for attach, kind in cases))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(128, 784, generator=generator), torch.randint(10, (128,), generator=generator)
    for name, build in BUILD.items():
        variants = {str(case): training_step(build, *case, x, y) for case in [(None, ""), *cases]}
        table.add(name, *over_the_first(variants, 8 * rounds))
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
    for name, measure in (("training step", training), ("optimizer step", steps)):
        table = measure(rounds)
        print(f"{table}\n{machine()}\n", flush=True)
        if given.write_docs:
            write_section(name, table, page=PAGE)


if __name__ == "__main__":
    main()
