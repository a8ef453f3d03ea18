"""Does cost grow linearly with parameters and data, and does a large network fit into memory?

Gradients, products and quick examinations of networks from 1e4 to 1e7 parameters, and of one network on 1 to 8 times
the data, are timed in turn, in one run; a figure is the least over rounds, to which other work on the machine adds
least. The slope is that of log time over log size, by least squares, with its standard error: 1 is linear, below 1 a
fixed cost still counts. Peak memory is that of the whole process of `wellcond examine --quick`.

    python benchmarks/scale.py [--quick] [--threads N] [--write-docs]
"""

import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import measuring
import networks
import wellcond as wc
from tables import PAGE, Table, arguments, write_section

LIMIT = 4 * 2**30
"""Bytes that the examination of ten million parameters may take."""

EXAMINED = 5 * 10**6
"""Parameters up to which examinations are timed here; the largest are in the table of memory."""

WHAT = ("gradient", "product, streaming", "product, kept", "examination")


def examined(build: Callable[[int], networks.Network], size: int, batch: int) -> wc.TrainingRun:
    """A run for the command, trained by Adam."""
    run = networks.trained(partial(build, size), batch, batches=2, steps=4)
    return wc.TrainingRun(run.model, run.loss_fn, run.batches, run.optimizer)


def mlp_small() -> wc.TrainingRun:
    return examined(networks.mlp_of, 10**5, batch=64)


def mlp() -> wc.TrainingRun:
    return examined(networks.mlp_of, 10**7, batch=16)


def transformer() -> wc.TrainingRun:
    return examined(networks.transformer_of, 10**7, batch=2)


def memory(names: Sequence[str]) -> Table:
    """Peak memory of the command in a process of its own."""
    table = Table("`wellcond examine --quick`", "parameters", "products", "seconds", "peak GiB", "of at most")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            command = ["examine", f"{__file__}:{name}", "--quick", "--output", str(Path(folder) / "report.html")]
            code = f"import sys; sys.argv[1:] = {command}; from wellcond.cli import app; app(standalone_mode=False)"
            code += "; print('PEAK', next(x for x in open('/proc/self/status') if x.startswith('VmHWM')))"
            said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        size = re.search(r"([\d,]+) parameters", said)[1]
        products, spent = re.search(r"([\d,]+) curvature-vector products in ([\d.,]+) s", said).groups()
        peak = 1024 * int(re.search(r"PEAK VmHWM:\s*(\d+)", said)[1])
        judged = "" if peak <= LIMIT else " EXCEEDED"
        table.add(name.replace("_", " "), size, products, spent, peak / 2**30, f"{LIMIT / 2**30:.0f}{judged}")
    return table


def actions(run: networks.Trained) -> dict[str, measuring.Action]:
    """What is timed on a network. The graphs that are kept stay in memory with the action."""
    v = torch.randn(run.size)
    streaming = wc.Hessian(wc.Problem(run.model, run.loss_fn, run.batches, memory_limit=0))
    kept = wc.Hessian(wc.Problem(run.model, run.loss_fn, run.batches).__enter__())
    return {"gradient": run.gradient, "product, streaming": lambda: streaming @ v, "product, kept": lambda: kept @ v}


def growth(
    heading: str, runs: dict[int, networks.Trained], size: Callable[[networks.Trained], int], count: int
) -> Table:
    """A row a network, a column for everything that is timed, and the slopes under them."""
    todo = {(key, what): action for key, run in runs.items() for what, action in actions(run).items()}
    taken = measuring.rounds(todo, count)
    for key, run in runs.items():
        examine = partial(wc.examine, run.model, run.loss_fn, run.batches, run.optimizer, quick=True)
        if run.size <= EXAMINED:
            taken[key, "examination"] = [measuring.seconds(examine) for _ in range(1 if run.size > 5e5 else 3)]
    least = {key: min(values) for key, values in taken.items()}
    table, sizes = Table(heading, *WHAT), [size(run) for run in runs.values()]
    for key, n in zip(runs, sizes, strict=True):
        table.add(f"{n:,}", *(duration(least.get((key, what))) for what in WHAT))
    for label, smallest in (("slope", 0), ("slope of the last decade", sizes[-1] / 12)):
        found = []
        for what in WHAT:
            points = [(n, least[key, what]) for key, n in zip(runs, sizes, strict=True) if (key, what) in least]
            found.append(slope([point for point in points if point[0] >= smallest]))
        table.add(label, *found)
    return table


def slope(points: Sequence[tuple[float, float]]) -> str:
    """Of log time over log size by least squares, with its standard error where there are three points or more."""
    u, w = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    if len(u) < 3:
        return f"{(w[-1] - w[0]) / (u[-1] - u[0]):.2f}"
    line = statistics.linear_regression(u, w)
    left = sum((b - line.intercept - line.slope * a) ** 2 for a, b in zip(u, w, strict=True))
    error = math.sqrt(left / (len(u) - 2) / (len(u) * statistics.pvariance(u)))
    return f"{line.slope:.2f} ± {error:.2f}"


def duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def main() -> None:
    parser = arguments(__doc__, quick="up to 1e6 parameters, fewer rounds", page=PAGE)
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
        os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    count = 4 if chosen.quick else 12
    parts = [memory(["mlp_small"] if chosen.quick else ["mlp", "transformer"])]
    print(parts[0], end="\n\n", flush=True)
    halves = range(8, 13 if chosen.quick else 15)
    for build, batch in ((networks.mlp_of, 64), (networks.transformer_of, 4)):
        runs = {half: networks.trained(partial(build, round(10 ** (half / 2))), batch) for half in halves}
        parts.append(growth(f"{build.__name__.removesuffix('_of')}, parameters", runs, lambda run: run.size, count))
        print(parts[-1], end="\n\n", flush=True)
    build = partial(networks.mlp_of, 10**5 if chosen.quick else 10**6)
    runs = {times: networks.trained(build, 64, batches=2 * times) for times in (1, 2, 4, 8)}
    parts.append(growth("examples, in batches of 64", runs, lambda run: run.examples, count))
    print(parts[-1])
    if chosen.write_docs:
        write_section("scale", *parts)


if __name__ == "__main__":
    main()
