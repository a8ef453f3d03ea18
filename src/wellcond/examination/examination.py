"""An examination: measurements, and the findings that follow from them.

`examine` opens the run as a `Subject` (subject.py), which reads the data and the optimizer once for all that follows.
`measure` (measurements.py) then takes every figure, the cheap ones first, so that what can't be measured at all is
refused before minutes of work. Only then each of `FINDINGS` looks at the figures: a finding may try its remedy on a
copy (`subject.trials`), which is what costs most, and none depends on another's. Every part runs inside
`Failures.attempt`, since one that fails must cost no other, and inside `on_fewer` (fewer_examples.py), since out of
memory it is made again on half the examples. Nothing here draws or prints: pages and plots are functions of the result,
in rooms above, and reach it through `Examination.renderer`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from wellcond.display import Renderer, Table, capitalized
from wellcond.examination.fewer_examples import on_fewer
from wellcond.examination.figures import headline, interruption
from wellcond.examination.finding import Find, Finding, Severity
from wellcond.examination.findings import FINDINGS
from wellcond.examination.json import to_json
from wellcond.examination.measurements import Measurements, measure
from wellcond.examination.progress import Progress
from wellcond.examination.subject import Settings, Subject
from wellcond.problem import Failures, TrainingRun, out_of_memory
from wellcond.trials import NoEffect


@dataclass(frozen=True, repr=False)
class Examination:
    """The result of `wellcond.examine`.

    Attributes:
        measurements: every figure.
        findings: what follows from them, the most severe first; of equal ones that whose remedy helped most.
        interrupted: the part that Ctrl-C ended, in an examination that is partial; else empty.
    """

    renderer: ClassVar[Renderer]
    """Draws the page and the plots; registered by `wellcond/__init__.py`."""

    measurements: Measurements
    findings: list[Finding]
    interrupted: str = ""

    @property
    def severity(self) -> Severity:
        """Of the most severe finding."""
        return Severity.worst(f.severity for f in self.findings)

    def save(self, path: str | Path = "report.html") -> Path:
        """Write the page: one file that works offline."""
        path = Path(path)
        path.write_text(self.renderer.page(self), encoding="utf-8")
        return path

    def plot(self, which: str = "spectrum", ax: Any = None) -> Any:
        """Draw one of the page's charts.

        Args:
            which: "spectrum" with the stability bound, "layers", "forecast", "rates" (effective learning rates), "rates
                by parameter", "decay" (weight decay really received) or "row norms".
            ax: matplotlib axes; default: new ones.

        Returns:
            The axes.

        Raises:
            ValueError: for another chart, or one that this examination has no data for.
            ModuleNotFoundError: without matplotlib (`pip install wellcond[plot]`).
        """
        return self.renderer.plot(self, which, ax)

    def __repr__(self) -> str:
        """What was measured, and a line for each finding."""
        found = (f"{f.severity.word:8}{f.key}: {f.title}" for f in self.findings)
        return "\n".join([self.title, *found])

    @property
    def title(self) -> str:
        """One line about what was examined, and whether that was interrupted."""
        return " ".join([headline(self.measurements), interruption(self.interrupted)]).strip()

    def _repr_html_(self) -> str:
        rows = [(f.severity.word, f.title, str(f.effect or "")) for f in self.findings]
        return Table(["severity", "finding", "its remedy, tried"], rows, self.title).html()

    def to_json(self) -> dict[str, Any]:
        """Every figure with its interval and origin, ready for `json.dump`; the schema is in docs/json.md."""
        return to_json(self.measurements, self.findings, self.interrupted)


def examine(
    model: nn.Module | TrainingRun,
    loss_fn: Any = None,
    data: Any = None,
    optimizer: Any = None,
    *,
    loss: Any = None,
    curvature: str = "hessian",
    mode: str = "train",
    batches: int | None = None,
    dtype: torch.dtype | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    partial: bool = False,
) -> Examination:
    """Measure how well conditioned a training run is and say what makes it so. Leaves no trace in the run.

    Up to 2,000 parameters the curvature is computed whole, in float64 where the model allows; above, every figure
    comes with an interval. With 100,000 parameters the cost is below 3,000 gradients of the loss, `quick` below 300.
    What a finding advises is tried, where it can be, in a short training of a copy of the run.

    If a figure can't be measured, the others still are, and the finding `not_measured` says why. When memory runs out,
    every second example is left out, repeatedly if necessary, and a note says so.

    Args:
        model: the network; or a `wellcond.TrainingRun`, alone.
        loss_fn: (output, target) → scalar, the mean over a batch's examples.
        data: one (input, target) batch, a list of them, or a DataLoader.
        optimizer: over the model's parameters, after a step; None to examine without one.
        loss: instead of `loss_fn`, a callable (model, batch) → scalar.
        curvature: "hessian", or "gauss-newton" to look at that alone.
        mode: "train" or "eval".
        batches: read at most `batches` of them; None as for `wellcond.Problem`.
        dtype: to measure in.
        quick: fewer products, wider intervals.
        seed: of everything random.
        progress: called with (stage, products done, products planned), both over the whole examination.
        partial: on Ctrl-C after the first gradient, return what was measured until then instead of raising
            KeyboardInterrupt; once more, and it is raised.

    Raises:
        TypeError, ValueError: for what can't be examined, with the remedy.

    >>> import torch, wellcond as wc
    >>> generator = torch.manual_seed(0)
    >>> X = torch.randn(50, 3)
    >>> model = torch.nn.Linear(3, 1)
    >>> examination = wc.examine(model, torch.nn.MSELoss(), (X, X.sum(1, keepdim=True)))
    >>> [f.key for f in examination.findings]
    ['inputs', 'negative_curvature']
    """
    settings, failures = Settings(curvature, mode, batches, dtype, quick, seed), Failures(partial)
    subject = Subject.of(TrainingRun.of(model, loss_fn, data, optimizer, loss), settings, failures)
    try:
        m, subject = on_fewer(subject, lambda given: measure(given, settings, progress), "all figures are")
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ValueError("out of memory at the loss and gradient of one example: nothing can be measured") from error
    started = time.perf_counter()
    found = [finding for find in FINDINGS if (finding := _looked_for(find, m, subject)) is not None]
    m.notes += subject.trials.notes
    m.seconds += time.perf_counter() - started
    return Examination(m, sorted(found, key=lambda f: (-f.severity, -f.gain)), failures.interrupted)


def _looked_for(find: Find, m: Measurements, subject: Subject) -> Finding | None:
    """A finding; after Ctrl-C what follows from the figures alone."""
    failures = subject.failures
    subject.problem.closed = bool(failures.interrupted)
    what = f"the finding “{find.__module__.rpartition('.')[2]}”"

    def on_what_fits() -> Finding | None:
        finding, seen = on_fewer(subject, lambda given: _found(find, m, given), f"{what} is")
        m.notes.extend(note for note in seen.notes if note not in m.notes)
        return finding

    return failures.attempt(what, on_what_fits, always=True)


def _found(find: Find, m: Measurements, subject: Subject) -> Finding | None:
    """One finding, which says so if its remedy was not tried."""
    found = find(m, subject)
    if found is None or found.effect:
        return found
    reason = found.effect.why if isinstance(found.effect, NoEffect) else ""
    if subject.run.optimizer is None:
        reason = "without an optimizer the remedy was not tried"
    elif subject.failures.interrupted:
        reason = "the remedy was not tried before the interruption"
    text = f"{found.text} {capitalized(reason)}." if found.remedy and reason else found.text
    return replace(found, text=text, effect=None)
