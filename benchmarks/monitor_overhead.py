"""How much of the wall time does `wc.Monitor` take, against its budget, and what does it see for that?

A small MLP, a small convolutional network and an MLP 784-512-512-10, trained by Adam for some seconds with a monitor
that may measure at every 50th step. The share is the monitor's own account against the clock, at its worst from the
first measurement on. "By the clock" is how much more time blocks of steps take than those of a twin that trains in
turn without a monitor, of the time of both, which is what the budget is a share of: it takes in what no account sees,
such as caches that a measurement leaves cold.

    python benchmarks/monitor_overhead.py [--quick] [--write-docs]
"""

import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc
from networks import Network, convolution, labelled, mlp
from tables import DOCS, Table, arguments, machine, write_section

PAGE = DOCS / "monitor.md"


def small_mlp() -> Network:
    """64-24-10, ReLU."""
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)), (64,)


NETWORKS: dict[str, tuple[Callable[[], Network], int]] = {
    "MLP 64-24-10, batch 64": (small_mlp, 64),
    "2 convolutions, batch 32": (convolution, 32),
    "MLP 784-512-512-10, batch 128": (mlp, 128),
}


class Run:
    """A network in training, with a monitor or without."""

    def __init__(self, build: Callable[[], Network], batch: int, overhead: float | None):
        torch.manual_seed(0)
        self.model, shape = build()
        self.optimizer, self.loss_fn = torch.optim.Adam(self.model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
        self.loader = DataLoader(TensorDataset(*labelled(torch.randn(20 * batch, *shape))), batch, shuffle=True)
        self.monitor, self.worst, self.first = None, 0.0, None
        if overhead is not None:
            options = {"every": 50, "overhead": overhead}
            self.monitor = wc.Monitor(self.model, self.loss_fn, self.loader, self.optimizer, **options)
        self.batches = self.endless()

    def endless(self) -> Iterator[list[torch.Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> None:
        x, y = next(self.batches)
        self.optimizer.zero_grad()
        loss = self.loss_fn(self.model(x), y)
        loss.backward()
        if self.monitor is not None:
            self.monitor.observe(loss)
        self.optimizer.step()

    def train(self, seconds: float) -> None:
        """For some seconds, watching the share."""
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            self.step()
            if self.monitor.history.records:
                self.first = self.first or time.perf_counter() - started
                self.worst = max(self.worst, self.monitor.share)


def shares(seconds: float) -> Table:
    """The share by the monitor's own account."""
    table = Table(
        "network", "budget", "of", "steps", "first after", "measured", "with κ", "worst share", "share at the end"
    )
    for name, (build, batch) in NETWORKS.items():
        for overhead in (0.05, 0.01):
            for length in (seconds / 4, seconds):
                run = Run(build, batch, overhead)
                run.train(length)
                records = run.monitor.history.records
                table.add(
                    name,
                    f"{overhead:.0%}",
                    f"{length:.1f} s",
                    f"{run.monitor.step:,}",
                    f"{run.first:.1f} s" if run.first else None,
                    len(records),
                    sum(r.kappa_mean is not None for r in records),
                    f"{run.worst:.2%}" if records else None,
                    f"{run.monitor.share:.2%}",
                )
    return table


def against_a_twin(seconds: float) -> Table:
    """Blocks of steps with and without, in turn."""
    table = Table("network", "budget", "step without, ms", "own account", "by the clock")
    for name, (build, batch) in NETWORKS.items():
        watched, alone = Run(build, batch, 0.05), Run(build, batch, None)
        taken, count, started = [0.0, 0.0], 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for i, run in enumerate((watched, alone)):
                before = time.perf_counter()
                for _ in range(20):
                    run.step()
                taken[i] += time.perf_counter() - before
            count += 20
        extra = (taken[0] - taken[1]) / sum(taken)
        table.add(name, "5%", 1e3 * taken[1] / count, f"{watched.monitor.share:.2%}", f"{extra:.2%}")
    return table


def main() -> None:
    given = arguments(__doc__, quick="shorter runs", page=PAGE).parse_args()
    torch.set_num_threads(1)
    for name, table in (
        ("shares", shares(2.4 if given.quick else 12.0)),
        ("twin", against_a_twin(3.0 if given.quick else 20.0)),
    ):
        print(f"{table}\n{machine()}\n", flush=True)
        if given.write_docs:
            write_section(name, table, page=PAGE)


if __name__ == "__main__":
    main()
