"""What does a penalty cost in the step, in steps of torch's fused AdamW without one?

All are stepped in turn, in one run; the ratio is that of minima. A step of AdamW moves 28 bytes a parameter: it reads
p, its gradient and two moments and writes all but the gradient. A penalty in the same pass moves no more, and one in a
pass of its own 12: it reads p and the second moment and writes p.

    python benchmarks/optimizer_step.py [--quick]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

import wellcond as wc

PENALTY = wc.penalties.L1(1e-3)
HEADINGS = ("one pass", "regularize", "eager", "state bytes")


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


def seconds(optimizer: Optimizer) -> float:
    started = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - started


def state_bytes(optimizer: Optimizer) -> int:
    return sum(t.nbytes for state in optimizer.state.values() for t in state.values())


def measured(total: int, tensors: int, order: str, rounds: int) -> None:
    chosen = sizes(total, tensors, order)
    optimizers = [fused(chosen), one_pass(chosen, True), regularized(chosen), one_pass(chosen, False)]
    times: list[list[float]] = [[] for _ in optimizers]
    for _ in range(rounds):
        for optimizer, taken in zip(optimizers, times, strict=True):
            taken.append(seconds(optimizer))
    best, *others = map(min, times)
    ratios = "".join(f"{other / best:12.2f}" for other in others)
    ratios += f"{state_bytes(optimizers[1]) / state_bytes(optimizers[0]):12.2f}"
    print(f"{total:12,} {tensors:8} {order:>12} {1e3 * best:9.2f} ms {ratios}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="fewer repetitions")
    rounds = 8 if arguments.parse_args().quick else 60
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        first = seconds(one_pass([1000], True)), seconds(regularized([1000]))
        print(f"compiling with an empty cache: one pass {first[0]:.1f} s, regularize after it {first[1]:.1f} s")
        print(f"{torch.get_num_threads()} threads; minima of {rounds} rounds; eager is the one pass, not compiled")
        headings = "".join(f"{heading:>12}" for heading in HEADINGS)
        print(f"{'parameters':>12} {'tensors':>8} {'order':>12} {'fused AdamW':>12} {headings}")
        print(f"{'bytes moved':>47}{1.0:12.2f}{40 / 28:12.2f}")
        for total, tensors in ((16_000_000, 48), (10_000_000, 160)):
            for order in ("large first", "small first", "shuffled"):
                measured(total, tensors, order, rounds)


if __name__ == "__main__":
    main()
