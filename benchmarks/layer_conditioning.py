"""What does `wc.layer_conditioning` cost, in gradients of the loss over the same data, and how much memory?

The networks of networks.py, and one with a layer of 8,192 columns: of few examples their rows are kept, of many they
are sketched. All after some steps of Adam; CPU time of one thread, which other work on the machine does not stretch.
The pass over the data grows with their number as the gradient does; the eigenvalues at its end do not.

    python benchmarks/layer_conditioning.py [--quick] [--write-docs]
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import wellcond as wc
from measuring import memory, ratios, rounds
from networks import BATCH, Network, Trained, convolution, mlp, trained, transformer
from tables import DOCS, Table, arguments, machine, write_section

PAGE = DOCS / "normalization.md"


def wide() -> Network:
    """8192-64-10, ReLU."""
    return nn.Sequential(nn.Linear(8192, 64), nn.ReLU(), nn.Linear(64, 10)), (8192,)


NETWORKS: dict[str, tuple[Callable[[], Network], int]] = {
    "MLP 784-512-512-10": (mlp, BATCH[mlp]),
    "2 convolutions, 32×32": (convolution, BATCH[convolution]),
    "transformer of width 128": (transformer, BATCH[transformer]),
    "MLP 8192-64-10": (wide, 512),
}


def measured(found: Trained, quick: bool) -> tuple[str, str, str | None]:
    """Milliseconds of the gradient, gradients that layer_conditioning takes, and megabytes unless `quick`."""
    problem = wc.Problem(found.model, found.loss_fn, found.batches)
    layers = partial(wc.layer_conditioning, problem)
    taken = rounds({"gradient": found.gradient, "layers": layers}, 1 if quick else 3, time.process_time)
    peak = None if quick else f"{memory(layers)[0] / 1e6:,.0f}"
    return f"{1e3 * statistics.median(taken['gradient']):,.0f}", f"{ratios(taken, 'gradient')['layers']:.1f}", peak


def main() -> None:
    given = arguments(__doc__, quick="fewer examples and repetitions, no memory", page=PAGE).parse_args()
    torch.set_num_threads(1)
    table = Table("network", "examples", "gradient, ms", "layer_conditioning, gradients", "peak memory, MB")
    for name, (build, batch) in NETWORKS.items():
        for batches in (1,) if given.quick else (4, 16):
            found = trained(build, batch, batches=batches)
            table.add(name, f"{found.examples:,}", *measured(found, given.quick))
    print(f"{table}\n{machine()}", flush=True)
    if given.write_docs:
        write_section("layer conditioning", table, page=PAGE)


if __name__ == "__main__":
    main()
