"""A monitor: measurements while a network trains, which training does not notice.

`Monitor` is a hook after the optimizer's step. Each step it first takes up the losses that were observed (losses.py),
then asks its `Pace` (pace.py) whether a measurement is due and which parts the `Budget` (budget.py) can afford. If
there are some, `Looking` (measuring.py) measures them on batches that were drawn once, `Findings` (finding_changes.py)
says which findings changed, and the result becomes a `Record` (record.py), which goes to the `History` (history.py) and
then to whoever listens: a file, a TensorBoard writer, the terminal. In this order, since what can stop training must
not: a look that fails becomes a record that says so, and a listener that fails is dropped. All time is booked, in the
parts of a look or as other time of the monitor's, because the share of the wall time is kept by the account. Pages,
plots and the terminal view are functions of a `History`.
"""

from __future__ import annotations

import math
import time
import warnings
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from wellcond.hooks import can_nest, check_runs_hooks, nested
from wellcond.monitor.budget import Budget
from wellcond.monitor.finding_changes import Findings
from wellcond.monitor.history import SCHEMA, History, Writer
from wellcond.monitor.losses import Losses
from wellcond.monitor.measuring import CONDITION, EDGE, LAYERS, Look, Looking, settle
from wellcond.monitor.pace import FINDINGS, RESERVED, Pace
from wellcond.monitor.record import FindingChange, Record
from wellcond.preconditioners import unwrapped_optimizer
from wellcond.private_torch import uncompiled
from wellcond.problem import TrainingRun, draw_batches, unwrapped

EXAMPLES = 128
"""Batches are drawn until there are `EXAMPLES` examples; default of `examples`."""


class Monitor:
    """Measures a run while it trains: edge ratio, λ_max of H and PᵀHP, κ, and the findings that changed.

    A hook after the optimizer's step counts, and now and then measures on a few batches that are drawn once. Training
    is bit for bit what it is without: parameters, buffers, optimizer state and random state are left as they were, and
    the loader is not touched.

    Automatic measurements are at least `every` steps apart, or follow a jump of the observed loss; they keep the
    monitor's share of the wall time since the first step at or below `overhead`, which wins over `every`. The first
    ones are only of λ_max and the edge ratio; κ and what needs layers come as soon as the budget has room.

    Args:
        model, loss_fn, data, loss: as for `wellcond.Problem`; or as `model` a `wellcond.TrainingRun`, alone.
        optimizer: whose steps are followed; a torch optimizer, or a wrapper with an `optimizer` attribute. One that is
            no preconditioner (LBFGS, Muon) is measured without P and without an edge ratio.
        every: steps between measurements, at least.
        overhead: the most that the monitor may have of the wall time, above 0 and below 1; None for no limit, where
            every measurement is whole.
        path: a file for the history, one line per measurement (docs/monitor.md); an existing one is continued.
        writer: takes every figure by `add_scalar(tag, value, step)`, such as TensorBoard's SummaryWriter.
        show: print one line per measurement.
        examples: how many examples to look at: batches are drawn from data until there are `examples`; default: 128.
            With more, the figures are closer to those of the whole loss, and more expensive.
        seed: of the batches drawn, and of every random direction.

    Attributes:
        history: everything recorded, by `History`.
        step: the optimizer's steps since the monitor was made.

    Raises:
        TypeError, ValueError: for what can't be monitored, with the remedy.

    >>> import torch, wellcond as wc
    >>> generator = torch.manual_seed(0)
    >>> X, model, loss_fn = torch.randn(64, 3), torch.nn.Linear(3, 1), torch.nn.MSELoss()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with wc.Monitor(model, loss_fn, (X, X.sum(1, keepdim=True)), optimizer, every=5, overhead=None) as monitor:
    ...     for _ in range(20):
    ...         optimizer.zero_grad()
    ...         loss = loss_fn(model(X), X.sum(1, keepdim=True))
    ...         loss.backward()
    ...         optimizer.step()
    ...         monitor.observe(loss)
    >>> [record.step for record in monitor.history]
    [1, 6, 11, 16]
    """

    def __init__(
        self,
        model: nn.Module | TrainingRun,
        loss_fn: Any = None,
        data: Any = None,
        optimizer: Any = None,
        *,
        loss: Any = None,
        every: int = 200,
        overhead: float | None = 0.05,
        path: str | Path | None = None,
        writer: Any = None,
        show: bool = False,
        examples: int | None = None,
        seed: int = 0,
    ):
        started = time.perf_counter()
        run = TrainingRun.of(model, loss_fn, data, optimizer, loss)
        if not isinstance(run.model, nn.Module):
            raise TypeError(f"model is a {type(run.model).__name__}; give a torch.nn.Module")
        for name, given in {"every": every, "examples": EXAMPLES if examples is None else examples}.items():
            if not isinstance(given, int) or isinstance(given, bool) or given < 1:
                raise ValueError(f"got {name}={given!r}; it is a whole number, 1 or more")
        if overhead is not None and (not isinstance(overhead, int | float) or not 0 < overhead < 1):
            raise ValueError(f"got overhead={overhead!r}; it is above 0 and below 1, or None for no limit")
        if run.optimizer is None:
            raise ValueError("the optimizer is missing: a monitor follows its steps")
        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(f"writer is a {type(writer).__name__} without add_scalar; give a TensorBoard SummaryWriter")
        if path is not None and not isinstance(path, str | Path):
            raise TypeError(f"path is a {type(path).__name__}; give a file name")
        optimizer = unwrapped_optimizer(run.optimizer)
        check_runs_hooks(optimizer)
        batches = draw_batches(run.data, pairs=run.loss is None, examples=examples, least=EXAMPLES, seed=seed)
        self.show, self.step = show, 0
        self._optimizer = weakref.ref(optimizer)
        self._model = unwrapped(run.model)
        self._looking = Looking(run.model, run.loss_fn, run.loss, batches, seed)
        problem, _ = self._looking.problem(optimizer, self._model.training)  # refuses what can't be measured
        self.history = History(
            {
                "model": type(problem.model).__name__,
                "parameters": problem.size,
                "optimizer": type(optimizer).__name__,
                "examples": problem.examples,
                "batches": len(batches),
                "every": every,
                "overhead": overhead,
                "seed": seed,
                "started": time.time(),
                "torch": torch.__version__,
            }
        )
        self._budget = Budget(overhead, RESERVED)
        self._pace = Pace(self._budget, self._looking, every)
        self._losses, self._findings, self._jumped = Losses(), Findings(), False
        self._writer, self._scalars = Writer(path), writer
        self._writer.write("run", schema=SCHEMA, run=self.history.run)
        self._training = self._model.training  # in the last step, whatever it is when a measurement is asked for
        self._nests = can_nest(optimizer)
        self._handle: Any = optimizer.register_step_post_hook(self._after_step)
        self._budget.other += time.perf_counter() - started

    # -- what a training loop calls ------------------------------------------------------------------------------

    def observe(self, loss: Any) -> None:
        """Show the loss of a step, before or after the optimizer's; the mean where several belong to one step.

        A tensor on a GPU is read when it is there, some steps later: nothing waits for it.

        Args:
            loss: a scalar tensor, or a number.

        Raises:
            TypeError, ValueError: for anything else.
        """
        started = time.perf_counter()
        self._losses.observe(loss)
        self._budget.counted(time.perf_counter() - started)

    def measure(self) -> Record:
        """Measure now, everything, whatever the budget; later measurements wait until it is kept again.

        Returns:
            The record, also in `history`.

        Raises:
            RuntimeError: if the optimizer is gone.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError("the optimizer is gone; a monitor measures the run that it was made for")
        started, booked = time.perf_counter(), self._budget.total
        self._losses.end_step(self.step)
        record = self._measure(optimizer, "request", self._pace.everything(), math.inf)
        self._budget.other += time.perf_counter() - started - (self._budget.total - booked)
        return record

    def save(self, path: str | Path = "monitor.html") -> Path:
        """Write the page with the history so far: one file that works offline."""
        return self.history.save(path)

    def plot(self, ax: Any = None, figure: str = "edge_ratio") -> Any:
        """Draw one figure over the steps, by `History.plot`."""
        return self.history.plot(ax, figure)

    @property
    def share(self) -> float:
        """Of the wall time since the first step, what the monitor took."""
        return self._budget.taken_share(time.perf_counter())

    @property
    def seconds(self) -> float:
        """What the monitor took, in all that it does."""
        return self._budget.total

    def remove(self) -> None:
        """Follow the optimizer no longer, and end the file; what was recorded stays."""
        if self._handle is None:
            return
        self._handle.remove()
        self._handle = None
        self.history.finished = True
        self._writer.write("end", step=self.step, share=self.share)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    def __repr__(self) -> str:
        removed = "" if self._handle is not None else "removed: "
        return f"{removed}Monitor({self.history.run['model']}, step {self.step:,}, {len(self.history)} measurements)"

    # -- the hook -------------------------------------------------------------------------------------------------

    @uncompiled
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Step post-hook: counts, and nothing that waits for a device unless it measures."""
        started = time.perf_counter()
        if self._nests and nested(optimizer):
            return
        budget, pace, booked = self._budget, self._pace, self._budget.total
        self.step += 1
        self._training = self._model.training
        pace.begin_step(started)
        self._jumped |= self._losses.end_step(self.step)
        if pace.is_due(self.step, self._jumped, started):
            chosen = pace.choose(started, lambda: self._probe(optimizer))
            if chosen is not None:
                self._measure(optimizer, "jump" if self._jumped else "every", *chosen)
        pace.ended_at = time.perf_counter()
        budget.counted(pace.ended_at - started - (budget.total - booked))

    def _probe(self, optimizer: Optimizer) -> float:
        """Seconds that a look with the fewest products takes."""
        settle(self._device)
        started = time.perf_counter()
        try:
            with self._plain():
                return self._looking.probe(optimizer, self._training)
        except Exception:  # the measurement fails too, and says why
            return time.perf_counter() - started
        finally:
            self._budget.other += time.perf_counter() - started

    def _measure(self, optimizer: Optimizer, why: str, parts: list[str], room: float) -> Record:
        settle(self._device)  # what training still has to do is not the monitor's
        started = time.perf_counter()
        look, failed = None, None
        changes: list[FindingChange] = []
        notes: list[str] = []
        try:
            with self._plain():
                look = self._looking.look(optimizer, [p for p in parts if p != FINDINGS], self._training, room)
                changes, notes = self._look_for_findings(look, parts)
        except Exception as error:
            failed = " ".join(str(error).split()) or type(error).__name__
        self._losses.flush()
        now, budget = time.perf_counter(), self._budget
        for part, seconds in (look.seconds if look else {parts[0]: now - started}).items():
            budget.took(part, seconds)
        told = {note for record in self.history for note in record.notes}
        rate = optimizer.param_groups[0].get("lr")
        record = Record(
            step=self.step,
            seconds=budget.elapsed(now),
            why=why,
            loss=self._losses.latest,
            learning_rate=None if rate is None else float(rate),
            changes=changes,
            jumps=self._losses.take_jumps(),
            failed=failed,
            notes=[note for note in notes if note not in told],
            cost=now - started,
            share=budget.taken_share(now),
            **(_figures(look) if look else {}),
        )
        self._pace.last, self._jumped = self.step, False
        self._tell(record)
        return record

    def _look_for_findings(self, look: Look, parts: list[str]) -> tuple[list[FindingChange], list[str]]:
        """What changed, and all notes; the time counts among the look's."""
        before = time.perf_counter()
        whole = not {FINDINGS, CONDITION, LAYERS}.isdisjoint(parts)
        changes, missing = self._findings.changes(look, whole)
        part = FINDINGS if whole else EDGE
        look.seconds[part] = look.seconds.get(part, 0.0) + time.perf_counter() - before
        return changes, [*look.measurements.notes, *missing]

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _plain(self) -> torch.autocast:
        """Inside, there is no autocast, which a loop may step under."""
        return torch.autocast(self._device.type, enabled=False)

    def _tell(self, record: Record) -> None:
        """Everyone who wants to know; no one of them can stop training."""
        self.history.records.append(record)
        self._writer.write("record", record=record.to_json())
        if self.show:
            print(record.line(), flush=True)
        if self._scalars is not None:
            try:
                for name, value in record.numbers().items():
                    self._scalars.add_scalar(f"wellcond/{name}", value, record.step)
            except Exception as error:
                self._scalars = None
                warnings.warn(
                    f"wellcond.Monitor: the writer raised {type(error).__name__} ({error}) and gets nothing more; the "
                    "run goes on",
                    stacklevel=2,
                )


def _figures(look: Look) -> dict[str, Any]:
    m = look.measurements
    plain, own, G = m.figures.get("hessian"), m.figures.get("hessian_preconditioned"), m.of("gauss_newton")
    return {
        "edge_ratio": m.edge and m.edge.ratio,
        "largest": plain and plain.largest,
        "largest_preconditioned": own and own.largest,
        "kappa_mean": G and G.kappa_mean,
        "kappa_effective": G and G.kappa_effective,
        "measured_loss": m.loss,
        "gradient_norm": m.gradient_norm,
        "products": m.products,
    }
