"""The command."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.text import Text

from wellcond import __version__
from wellcond.cli.delivery import Terminal, check_writable, deliver, say, write_text, writing
from wellcond.cli.target import TargetError, load_checkpoint, load_target, move_run, user_traceback
from wellcond.examination import Examination, Severity, examine, read_examination
from wellcond.monitor import page as history_page
from wellcond.monitor import watch
from wellcond.problem import first_line, raised_by_us
from wellcond.report import compare

FOUND, MISTAKE, INTERRUPTED = 1, 2, 130
"""Exit codes beside 0: a finding at or above --fail-on; the user's mistake; Ctrl-C."""

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


Severe = Literal["notice", "severe"]
"""Severities that can fail a run."""

WholeTraceback = Annotated[bool, typer.Option("--traceback", help="On a mistake, show the whole traceback.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Measure how well conditioned a PyTorch training run is, and what makes it so.

    Example: wellcond examine train.py:setup
    """
    if version:
        print(f"wellcond {__version__}")
        raise typer.Exit


@app.command("examine")
def examine_command(
    target: Annotated[
        str, typer.Argument(help="file.py[:function] or package.module[:function]; default function setup.")
    ],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write every figure as JSON; - for standard output."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="Load this state dict first.")] = None,
    curvature: Annotated[
        Literal["hessian", "gauss-newton"], typer.Option(help="The Hessian and Gauss-Newton, or Gauss-Newton alone.")
    ] = "hessian",
    batches: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Measure on at most N batches; all by default, of a loader up to 8,192 examples."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            metavar="N",
            help="Of what is random: directions, dropout, the order of a shuffled loader.",
        ),
    ] = 0,
    device: Annotated[str | None, typer.Option(metavar="D", help="Move the model there first.")] = None,
    dtype: Annotated[
        Literal["float32", "float64"] | None,
        typer.Option(help="Measure in this type; by default float64 up to 2,000 parameters, else the model's own."),
    ] = None,
    mode: Annotated[
        Literal["train", "eval"], typer.Option(help="Dropout and batch norm as in training, or not.")
    ] = "train",
    quick: Annotated[
        bool, typer.Option("--quick", help="Under 300 gradients instead of 3,000: wider intervals.")
    ] = False,
    fail_on: Annotated[Severe | None, typer.Option(help="Exit with 1 if a finding is at least this severe.")] = None,
    show_traceback: WholeTraceback = False,
) -> None:
    """Examine a training run: print a summary, write a page.

    The target's function returns wc.TrainingRun(model, loss_fn, data, optimizer). Nothing in the run is changed.

    Example: wellcond examine examples/digits.py --json digits.json
    """
    errors = Console(stderr=True)
    piped = str(json_file) == "-"
    with _one_line_for_mistakes(errors, show_traceback):
        check_writable(output, json_file)
        # With JSON on standard output, what the user's code prints goes where the summary goes.
        with contextlib.redirect_stdout(sys.stderr) if piped else contextlib.nullcontext():
            examination = _examined(
                target,
                checkpoint,
                device,
                errors,
                curvature=curvature,
                mode=mode,
                batches=batches,
                dtype=getattr(torch, dtype) if dtype else None,
                quick=quick,
                seed=seed,
                partial=True,
            )
        deliver(examination, errors if piped else Terminal(), output, json_file)
    if examination.interrupted:
        say(errors, "interrupted: the report is partial; the run is as it was")
        raise typer.Exit(INTERRUPTED)
    if fail_on is not None and examination.severity >= Severity.of(fail_on):
        raise typer.Exit(FOUND)


@app.command("watch")
def watch_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What wc.Monitor(path=FILE) writes.")],
    once: Annotated[bool, typer.Option("--once", help="Show what there is and exit.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the page of what there is, and exit.")] = None,
    show_traceback: WholeTraceback = False,
) -> None:
    """Show the history of a monitored run in the terminal, until the run is finished (or Ctrl-C).

    Example: wellcond watch monitor.jsonl
    """
    errors = Console(stderr=True)
    with _one_line_for_mistakes(errors, show_traceback):
        check_writable(output)
        try:
            history = watch(file, Console(), once=once or output is not None)
        except KeyboardInterrupt:
            return
        except OSError as error:
            raise TargetError(f"can't read {file}: {error.strerror}") from error
        if output is not None:
            write_text(output, history_page(history))
            say(Console(), f"Page: {output}", prefix="")


_STYLES = {"head": "bold", "warning": "yellow", "bad": "red", "good": "green", "": ""}


@app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="Written by wellcond examine --json.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The same, later.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    fail_on: Annotated[
        Severe | None,
        typer.Option(help="Exit with 1 if a finding that is new, or more severe than before, is at least this severe."),
    ] = None,
    show_traceback: WholeTraceback = False,
) -> None:
    """Say what changed between two examinations: findings, figures beyond their errors, the runs.

    Example: wellcond compare before.json after.json --fail-on severe
    """
    with _one_line_for_mistakes(Console(stderr=True), show_traceback):
        found = compare(read_examination(before), read_examination(after))
        if as_json:
            print(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
        else:
            console = Console()
            for style, text in found.lines():
                console.print(Text(text, style=_STYLES[style]), soft_wrap=True)
    if fail_on is not None and found.severity >= Severity.of(fail_on):
        raise typer.Exit(FOUND)


@app.command("evidence")
def evidence_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Claims; all of them by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds and shorter runs: minutes, not an hour.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write evidence.html and a picture a claim there.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every run's figures.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes, one thread each; the cores by default.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Print each claim and the rule that decides, and exit.")] = False,
    show_traceback: WholeTraceback = False,
) -> None:
    """Hold the claims of the theory against real training: figures, spreads over seeds, verdicts.

    Exit code 1 if a claim could not be measured. Needs scikit-learn and matplotlib: pip install 'wellcond[evidence]'.

    Example: wellcond evidence rate --output evidence
    """
    from wellcond.evidence import CLAIMS, pages, print_claims, print_table, run_claims

    console = Console()
    with _one_line_for_mistakes(Console(stderr=True), show_traceback):
        known = {claim.name: claim for claim in CLAIMS}
        if unknown := [name for name in names or () if name not in known]:
            raise TargetError(f"there is no claim {unknown[0]!r}; there are {', '.join(known)}")
        claims = [known[name] for name in dict.fromkeys(names or known)]
        if show:
            print_claims(claims, console)
            return
        for needed in ("sklearn", *(["matplotlib"] if output else [])):  # before the hour, not after it
            if importlib.util.find_spec(needed) is None:
                raise TargetError("the evidence needs scikit-learn and matplotlib: pip install 'wellcond[evidence]'")
        if output is not None:  # the JSON may go there too
            with writing(f"into {output}"):
                output.mkdir(parents=True, exist_ok=True)
        check_writable(json_file)
        with _progress(Console(stderr=True), "starting") as advance:
            evidence = run_claims(claims, quick=quick, jobs=jobs, progress=advance)
        print_table(evidence, console)
        if json_file is not None:
            write_text(json_file, json.dumps(evidence.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        if output is not None:
            for name, text in pages(evidence).items():
                write_text(output / name, text)
            say(console, f"Page: {output / 'evidence.html'}", prefix="")
    if any(result.failures for result in evidence.results):
        raise typer.Exit(FOUND)


def _examined(target: str, checkpoint: Path | None, device: str | None, errors: Console, **options: Any) -> Examination:
    """Load the run and examine it, with a progress bar."""
    with _progress(errors, f"running {target}") as advance:
        run = load_target(target)
        if checkpoint is not None:
            load_checkpoint(run, checkpoint)
        if device is not None:
            move_run(run, device)
        advance("reading the data, first gradient", 0, None)
        try:
            return examine(run, progress=advance, **options)
        except SystemExit as error:
            raise TargetError(f"the run's own code raised {first_line(error)}", user_traceback(error)) from error


@contextlib.contextmanager
def _one_line_for_mistakes(errors: Console, whole: bool) -> Iterator[None]:
    """A mistake is one line, after the user's own traceback where their code raised; Ctrl-C is one line too."""
    try:
        yield
    except KeyboardInterrupt:
        say(errors, "interrupted; the run is as it was")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        ours = isinstance(error, TargetError) or raised_by_us(error)
        if whole:
            say(errors, traceback.format_exc().rstrip(), prefix="")
        elif not ours:
            say(errors, user_traceback(error).rstrip(), prefix="")
        elif isinstance(error, TargetError) and error.details:
            say(errors, error.details.rstrip(), prefix="")
        say(errors, str(error) if ours else f"the run's own code raised {first_line(error)}")
        raise typer.Exit(MISTAKE) from error


@contextlib.contextmanager
def _progress(console: Console, first: str) -> Iterator[Callable[[str, float, int | None], None]]:
    """A progress bar; gives what is called with a stage, how many of its parts are done, and all."""
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), *Progress.get_default_columns()[1:]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(first, total=None)
        yield lambda stage, done, total: progress.update(task, description=stage, completed=done, total=total)


def main() -> None:
    """Entry point of the `wellcond` command."""
    sys.exit(app())
