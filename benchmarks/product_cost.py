"""What does a product with a curvature matrix cost, in gradients, here and in other libraries?

The gradient is a training loop's own, with the kernels that the model usually runs on. Gradients and products are timed
in turn, in one run; a figure is the median over rounds of a product's time over that of the same round's gradient.
Products that are not the float64 one's are named.

    python benchmarks/product_cost.py [--quick] [--threads N] [--device D] [--write-docs]
"""

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import measuring
import networks
import peers
import wellcond as wc
from tables import PAGE, Table, arguments, write_section

OURS = ("kept", "streaming", "compiled, kept", "compiled, streaming")
PEERS = ("curvlinops", "hessian-eigenthings", "PyHessian", "PyHessian kept", "linearize, compiled")
COLUMNS = OURS + PEERS

BOUNDS = {
    "kept": {"mlp": 1.6, "convolution": 1.8, "transformer": 2.5},
    "compiled, kept": {"mlp": 1.4, "convolution": 1.4, "transformer": 2.0},
    "compiled, streaming": {"mlp": 2.5, "convolution": 2.5, "transformer": 2.5},
}
"""What a Hessian-vector product may cost, in gradients."""

WRONG = 1e-4
"""Products in float32 differ from the float64 one by rounding, some 1e-6 of its length; by more than this, they are
wrong."""

OPERATORS = {"hessian": wc.Hessian, "gauss-newton": wc.GaussNewton}


class Measured:
    """One network's products with one curvature: cost in gradients, seconds to the first product, bytes at its peak and
    kept between products, and whose result is wrong."""

    def __init__(self, run: networks.Trained, curvature: str, chosen: argparse.Namespace, stack: contextlib.ExitStack):
        v = torch.randn(run.size, device=run.batches[0][0].device)
        self.set_up: dict[str, float] = {}
        self.peak: dict[str, int] = {}
        self.kept: dict[str, int] = {}
        actions: dict[str, measuring.Action] = {"gradient": run.gradient}
        results: dict[str, Tensor] = {}
        builders = ours(run, curvature, not chosen.quick, stack) | peers.products(run, curvature, not chosen.quick)
        for name, build in builders.items():
            made: list[peers.Product] = []
            self.set_up[name] = measuring.seconds(lambda made=made, build=build: made.append(started(build, v)))
            actions[name] = lambda multiply=made[0]: multiply(v)
            results[name] = peers.flat(actions[name]()).detach()
        taken = measuring.rounds(actions, 4 if chosen.quick else 15)
        self.cost = measuring.ratios(taken, "gradient")
        self.gradient = statistics.median(taken["gradient"])
        self.taken = taken
        for name in results:
            self.peak[name] = measuring.memory(actions[name])[0]
            if name in ("kept", "PyHessian kept"):  # not compiled: a second build would compile anew
                self.kept[name] = measuring.memory(partial(started, builders[name], v))[1]
        exact = OPERATORS[curvature](wc.Problem(run.model, run.loss_fn, run.batches, dtype=torch.float64)) @ v.double()
        errors = {name: float((result - exact).norm() / exact.norm()) for name, result in results.items()}
        self.wrong = {name: error for name, error in errors.items() if error > WRONG}

    def memory(self, name: str) -> str | None:
        """In MiB: the peak of a product, and what is kept between products."""
        if name not in self.peak:
            return None
        kept = f" + {self.kept[name] / 2**20:.0f}" if name in self.kept else ""
        return f"{self.peak[name] / 2**20:.0f}{kept}"


def started(build: Callable[[], peers.Product], v: Tensor) -> peers.Product:
    """A product that has made its first multiplication."""
    multiply = build()
    multiply(v)
    return multiply


def ours(
    run: networks.Trained, curvature: str, compiled: bool, stack: contextlib.ExitStack
) -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """Our products, with graphs kept until the stack closes and streaming, on request compiled too."""

    def make(kept: bool, **options: Any) -> Callable[[Tensor], Tensor]:
        problem = wc.Problem(run.model, run.loss_fn, run.batches, **options)
        if kept:
            stack.enter_context(problem)
        return OPERATORS[curvature](problem).matvec

    found = {"kept": lambda: make(True), "streaming": lambda: make(False)}
    if compiled:
        found["compiled, kept"] = lambda: make(True, compile=True)
        found["compiled, streaming"] = lambda: make(True, compile=True, memory_limit=0)
    return found


def main() -> None:
    parser = arguments(__doc__, quick="fewer rounds, nothing compiled", page=PAGE)
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    cache = tempfile.TemporaryDirectory()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache.name  # so that nothing is found compiled
    cost = Table("product, in gradients", "gradient", *COLUMNS)
    set_up, memory = Table("seconds to the first", *COLUMNS), Table("peak MiB of a product, + kept", *COLUMNS)
    remarks: list[str] = []
    for build, batch in networks.BATCH.items():
        run = networks.trained(build, batch, device=chosen.device)
        for curvature in ("hessian", "gauss-newton"):
            with contextlib.ExitStack() as stack:
                m = Measured(run, curvature, chosen, stack)
            row = f"{build.__name__}, {curvature}"
            cost.add(row, f"{1e3 * m.gradient:.1f} ms", *(m.cost.get(column) for column in COLUMNS))
            set_up.add(row, *(m.set_up.get(column) for column in COLUMNS))
            memory.add(row, *(m.memory(column) for column in COLUMNS))
            remarks += remarks_on(row, build.__name__, m)
    for part in (cost, set_up, memory, "\n".join(remarks)):
        print(part, end="\n\n")
    if chosen.write_docs:
        write_section("product_cost", cost, set_up, memory, "\n".join(f"- {remark}" for remark in remarks))


def remarks_on(row: str, network: str, m: Measured) -> list[str]:
    """Which peer wins, which bound is missed, whose result is wrong."""
    said = []
    for here, theirs in (("streaming", PEERS[:3]), ("kept", PEERS[3:4]), ("compiled, kept", PEERS[4:])):
        for name in theirs:
            if name in m.cost and name not in m.wrong and (won := measuring.wins(m.taken, name, here)):
                said.append(f"{row}, {here}: {name} wins, {m.cost[name]:.2f} against {m.cost[here]:.2f} ({won}).")
    if row.endswith("hessian"):
        for name, bounds in BOUNDS.items():
            if name in m.cost and m.cost[name] > bounds[network]:
                said.append(f"{row}, {name}: {m.cost[name]:.2f} is over the bound of {bounds[network]}.")
    said += [f"{row}: the product of {name} is wrong, by {error:.1%} of its length." for name, error in m.wrong.items()]
    return said


if __name__ == "__main__":
    main()
