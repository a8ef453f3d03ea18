"""What does a penalty cost in the step, in steps of torch's fused AdamW without one?

All are stepped in turn, in one run; the ratio is that of minima. A step of AdamW moves 28 bytes a parameter: it reads
p, its gradient and two moments and writes all but the gradient. A penalty in the same pass moves no more, and one in a
pass of its own 12: it reads p and the second moment and writes p.

    python benchmarks/optimizer_step.py [--quick]
"""

import os
import tempfile
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

import wellcond as wc
from measuring import rounds, seconds
from tables import Table, arguments

PENALTY = wc.penalties.L1(1e-3)


def sizes(total: int, tensors: int, order: str) -> list[int]:
    """Log-normal, as the layers of a network are uneven."""
    weights = torch.randn(tensors, generator=torch.Generator().manual_seed(0)).mul(1.5).exp()
    made = [max(2, int(w)) for w in weights / weights.sum() * total]
    return made if order == "shuffled" else sorted(made, reverse=order == "large first")


def parameters(sizes: Sequence[int]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    made = [nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


def fused(sizes: Sequence[int]) -> Optimizer:
    return torch.optim.AdamW(parameters(sizes), fused=True)


def regularized(sizes: Sequence[int]) -> Optimizer:
    optimizer = fused(sizes)
    wc.regularize(optimizer, PENALTY, params="all", compile=True)
    return optimizer


def one_pass(sizes: Sequence[int], compile: bool) -> Optimizer:
    return wc.optim.AdamW(parameters(sizes), penalty=PENALTY, penalized="all", compile=compile)


def state_bytes(optimizer: Optimizer) -> int:
    return sum(t.nbytes for state in optimizer.state.values() for t in state.values())


def measured(table: Table, total: int, tensors: int, order: str, count: int) -> None:
    chosen = sizes(total, tensors, order)
    optimizers = {"fused AdamW": fused(chosen), "one pass": one_pass(chosen, True), "regularize": regularized(chosen)}
    optimizers["eager"] = one_pass(chosen, False)
    taken = rounds({name: optimizer.step for name, optimizer in optimizers.items()}, count)
    best, *others = (min(times) for times in taken.values())
    kept = state_bytes(optimizers["one pass"]) / state_bytes(optimizers["fused AdamW"])
    table.add(f"{total:,}", tensors, order, f"{1e3 * best:.2f} ms", *(other / best for other in others), kept)


def main() -> None:
    count = 8 if arguments(__doc__, quick="fewer repetitions").parse_args().quick else 60
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        first = seconds(one_pass([1000], True).step), seconds(regularized([1000]).step)
        print(f"compiling with an empty cache: one pass {first[0]:.1f} s, regularize after it {first[1]:.1f} s")
        print(f"{torch.get_num_threads()} threads; minima of {count} rounds; eager is the one pass, not compiled")
        table = Table("parameters", "tensors", "order", "fused AdamW", "one pass", "regularize", "eager", "state bytes")
        table.add("bytes moved", "", "", "", 1.0, 40 / 28, "", "")
        for total, tensors in ((16_000_000, 48), (10_000_000, 160)):
            for order in ("large first", "small first", "shuffled"):
                measured(table, total, tensors, order, count)
    print(table)


if __name__ == "__main__":
    main()
