"""What goes wrong costs no report: failures, memory that ends, Ctrl-C, a full disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

import wellcond as wc
from tests.test_cli import write
from wellcond.examination import examination as examining
from wellcond.examination import measurements as measuring
from wellcond.problem.failures import Failures
from wellcond.problem.memory import halved, out_of_memory
from wellcond.report import page
from wellcond.report.terminal import print_summary

SCHEMA = json.loads((Path(wc.__file__).parent / "examination" / "examination.schema.json").read_text())
OUT = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    "Python": MemoryError(),
}


def run(batches: int = 1, size: int = 16, loss_fn: nn.Module | None = None) -> wc.TrainingRun:
    torch.manual_seed(0)
    model, loss_fn = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), loss_fn or nn.MSELoss()
    data = [(torch.randn(size, 3), torch.randn(size, 1)) for _ in range(batches)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for x, y in data * 3:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return wc.TrainingRun(model, loss_fn, data, optimizer)


def examined(run: wc.TrainingRun, **options) -> wc.results.Examination:
    """Quickly; and every form of the report can be made of it."""
    examination = wc.examine(run.model, run.loss_fn, run.data, run.optimizer, quick=True, **options)
    jsonschema.validate(examination.to_json(), SCHEMA)
    assert examination.to_json() == json.loads(json.dumps(examination.to_json(), allow_nan=False))
    assert "<h1>" in page(examination)
    examination._repr_html_()
    return examination


def printed(examination: wc.results.Examination, capsys) -> str:
    from rich.console import Console

    print_summary(examination, Console(width=200))
    return capsys.readouterr().out


def not_measured(examination: wc.results.Examination) -> wc.results.Finding:
    (found,) = (f for f in examination.findings if f.key == "not_measured")
    assert found.severity is wc.results.Severity.NOTICE
    return found


def raiser(error: BaseException):
    def raises(*_args, **_options):
        raise error

    return raises


PARTS = {
    "conditioning": ("spectrum of the Hessian, the spectrum of PᵀHP, ", lambda m: not m.figures),
    "edge_ratio": ("edge ratio", lambda m: m.edge is None and len(m.figures) == 4),
    "row_norm_correlation": ("row norms", lambda m: m.row_norms is None and m.edge is not None),
    "scaled_rows": ("forecast", lambda m: m.forecast is None),
    "step_sizes": ("learning rates", lambda m: m.step_sizes is None),
    "layer_conditioning": ("layers", lambda m: m.layers == [] and m.edge is not None),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_measurement_that_fails_is_a_finding_and_costs_no_other(part, monkeypatch, capsys):
    name, missing = PARTS[part]
    monkeypatch.setattr(measuring, part, raiser(ZeroDivisionError("planted\nsecond line")))
    if part == "scaled_rows":  # a quick examination makes none
        given = run()
        examination = wc.examine(given.model, given.loss_fn, given.data, given.optimizer)
    else:
        examination = examined(run())
    title = not_measured(examination).title
    assert name in title
    assert title.endswith("could not be measured, because of ZeroDivisionError: planted.")
    assert "test_robust.py, line" in not_measured(examination).text
    assert missing(examination.measurements)
    assert examination.measurements.loss > 0
    assert "because of ZeroDivisionError: planted" in printed(examination, capsys)


def test_nothing_fails_in_a_run_without_a_fault():
    assert all(f.key != "not_measured" for f in examined(run()).findings)


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.Muon, torch.optim.LBFGS, torch.optim.Rprop])
def test_an_optimizer_that_cannot_be_read_costs_only_what_depends_on_it(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False))  # Muon takes matrices
    x, y = 100 * torch.randn(16, 3), torch.randn(16, 1)
    examination = examined(wc.TrainingRun(model, nn.MSELoss(), (x, y), kind(model.parameters(), lr=1e-2)))
    title = not_measured(examination).title
    assert title.startswith("What the optimizer does to the curvature")
    assert f"{kind.__name__} can't be read as a preconditioner" in title
    assert examination.measurements.edge is examination.measurements.optimizer is None
    whole = torch.linalg.eigvalsh(wc.Hessian(wc.Problem(model, nn.MSELoss(), (x, y), dtype=torch.float64)).dense())
    largest = examination.measurements.figures["hessian"].largest
    assert largest.low - 1e-9 <= float(whole[-1]) <= largest.high + 1e-9


def test_a_finding_that_fails_is_told_and_costs_no_other(monkeypatch):
    planted = [find for find in examining.FINDINGS if "inputs" not in find.__module__]

    def find(m, subject):
        raise ValueError("planted")

    find.__module__ = "wellcond.examination.findings.inputs"
    monkeypatch.setattr(examining, "FINDINGS", [find, *planted])
    examination = examined(run())
    assert not_measured(examination).title.startswith("The finding “inputs” could not be measured, because")
    assert any(f.key == "learning_rate" for f in examination.findings)


def test_a_trial_that_fails_is_told_and_its_finding_stays():
    given = run()
    given.optimizer.param_groups[0]["lr"] = 1e3
    given.model.not_a_leaf = torch.ones(3, requires_grad=True) * 2
    examination = examined(given)
    assert "does to a copy of the run" in not_measured(examination).title
    assert "Only Tensors created explicitly" in not_measured(examination).title
    found = next(f for f in examination.findings if f.key == "learning_rate")
    assert found.severity is wc.results.Severity.SEVERE
    assert found.effect is None


def test_a_network_without_second_derivative_keeps_the_rest_of_its_report():
    """Our own words about it are told as they are, once for everything that needs the derivative."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g

    given = run()
    given.model[1].forward = Once.apply
    examination = examined(given)
    title = not_measured(examination).title
    assert "spectrum of the Hessian" in title
    assert not examination.measurements.figures.get("hessian")
    assert examination.measurements.layers[0].kappa.defined


def test_causes_are_told_once_each():
    failures = Failures()
    for what, error in (("a", KeyError("x")), ("b", KeyError("x")), ("c", OSError("y"))):
        assert failures.attempt(what, lambda error=error: raiser(error)()) is None
    assert [(parts, why) for (why, _), parts in failures.causes().items()] == [
        (["a", "b"], "of KeyError: 'x'"),
        (["c"], "of OSError: y"),
    ]
    with pytest.raises(KeyError):
        failures.attempt("d", raiser(KeyError("z")), let=(KeyError,))
    with pytest.raises(KeyboardInterrupt):
        failures.attempt("e", raiser(KeyboardInterrupt()))


class Hungry(nn.MSELoss):
    """Has no memory for more than so many examples."""

    def __init__(self, most: int, error: Exception):
        super().__init__()
        self.most, self.error = most, error

    def forward(self, output, target):
        if len(output) > self.most:
            raise self.error
        return super().forward(output, target)


@pytest.mark.parametrize("kind", OUT)
def test_out_of_memory_halves_the_examples_and_says_so(kind, capsys):
    given = run(batches=2, size=16, loss_fn=Hungry(4, OUT[kind]))
    examination = examined(given)
    m = examination.measurements
    assert m.examples == 8
    note = "Memory ran out with 16 examples at a time: all figures are of 8 of 32 examples, 4 at a time."
    assert m.notes == [note]
    assert note in printed(examination, capsys)
    assert note in page(examination)
    assert examination.to_json()["notes"] == [note]
    fewer = wc.Problem(given.model, nn.MSELoss(), [(x[::4], y[::4]) for x, y in given.data], dtype=torch.float64)
    assert m.loss == pytest.approx(fewer.loss(), rel=1e-12)
    assert all(f.key != "not_measured" for f in examination.findings)


def test_memory_down_to_one_example_and_then_one_line():
    examination = examined(run(batches=2, size=5, loss_fn=Hungry(1, OUT["GPU"])))
    assert examination.measurements.examples == 2
    with pytest.raises(ValueError, match="out of memory at the loss and gradient of one example"):
        examined(run(loss_fn=Hungry(0, OUT["GPU"])))


def test_memory_that_ends_in_a_later_part_starts_over_on_fewer(monkeypatch):
    """All figures belong to the same examples."""
    layers = measuring.layer_conditioning

    def hungry(problem):
        if problem.examples > 4:
            raise OUT["CPU"]
        return layers(problem)

    monkeypatch.setattr(measuring, "layer_conditioning", hungry)
    m = examined(run()).measurements
    assert m.examples == 4
    assert m.layers[0].rows == 4
    monkeypatch.setattr(measuring, "layer_conditioning", raiser(OUT["CPU"]))
    examination = examined(run(size=2))
    assert examination.measurements.examples == 1
    assert "conditioning of layers" in not_measured(examination).title


def test_memory_that_ends_in_a_finding_is_that_findings_affair(monkeypatch):
    def find(m, subject):
        if subject.problem.examples > 8:
            raise OUT["GPU"]
        return wc.results.Finding("planted", wc.results.Severity.GOOD, f"{subject.problem.examples}", "")

    monkeypatch.setattr(examining, "FINDINGS", [find])
    examination = examined(run(size=32))
    assert examination.measurements.examples == 32
    assert [f.title for f in examination.findings] == ["8"]
    assert examination.measurements.notes == [
        "Memory ran out with 32 examples at a time: the finding “test_robust” is of 8 of 32 examples, 8 at a time."
    ]


def test_what_is_halved():
    X = torch.arange(5)
    assert [b["x"].tolist() for b in halved([{"x": X, "y": [X]}])] == [[0, 2, 4]]
    assert halved([X[:1], X[1:2], X[2:3]]) == [X[:1], X[2:3]]
    assert halved([X[:1]]) is None
    shared = [(X, torch.ones(3))]  # no row an example: it can't be made smaller
    assert halved(shared) is None
    assert halved(shared * 2) == shared
    error = ValueError("no room")
    assert not out_of_memory(error)
    error.__cause__ = MemoryError()
    assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("mat1 and mat2"))


@pytest.mark.parametrize("part", ["conditioning", "edge_ratio", "layer_conditioning"])
def test_ctrl_c_gives_what_was_measured_until_then(part, monkeypatch, capsys):
    given = run()
    losses = []
    monkeypatch.setattr(measuring, part, lambda *a, **o: losses.clear() or raiser(KeyboardInterrupt())())
    given.model.register_forward_hook(lambda *_: losses.append(1))
    with pytest.raises(KeyboardInterrupt):
        examined(given)
    examination = examined(given, partial=True)
    assert not losses  # nothing is evaluated any more
    assert examination.interrupted
    m = examination.measurements
    assert (m.edge is None) == (part != "layer_conditioning")
    assert any(f.key == "learning_rate" for f in examination.findings) == (part == "layer_conditioning")
    assert all(f.key != "not_measured" for f in examination.findings)
    words = f"Partial report: interrupted at {examination.interrupted}."
    assert words in printed(examination, capsys)
    assert words in page(examination)
    told = examination.to_json()
    assert told["interrupted"] == examination.interrupted
    saved = wc.results.SavedExamination.from_json(told, "a.json")
    assert any("a.json is partial" in w for w in wc.compare(saved, saved).warnings)


def test_an_older_file_without_the_field_is_whole():
    old = Path(__file__).parent / "data" / "examination-1-without-effect.json"
    assert wc.read_examination(old).interrupted == ""


def test_a_second_ctrl_c_is_raised(monkeypatch):
    monkeypatch.setattr(measuring, "edge_ratio", raiser(KeyboardInterrupt()))
    monkeypatch.setattr(examining, "FINDINGS", [raiser(KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        examined(run(), partial=True)
    failures = Failures(partial=True)

    def finding():
        assert failures.attempt("a trial", raiser(KeyboardInterrupt())) is None
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failures.attempt("its finding", finding)
    assert failures.interrupted == "a trial"


def command(*arguments: str, **options) -> subprocess.Popen:
    line = [sys.executable, "-c", "from wellcond.cli import main; main()", "examine", *arguments]
    env = {**os.environ, "COLUMNS": "200"}
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=env, **options)


SLOW = """

class Slow(nn.MSELoss):
    calls = 0

    def forward(self, output, target):
        Slow.calls += 1
        if Slow.calls > 12:
            print("ready", flush=True)
            import time

            time.sleep(%s)
        return super().forward(output, target)


def setup():
    return run(loss_fn=Slow())
"""


def test_ctrl_c_in_a_real_process_writes_the_partial_report(folder):
    write(folder, SLOW % 60)
    process = command("train.py", "--quick", "--json", "out.json", stdout=subprocess.PIPE)
    assert process.stdout.readline().strip() == "ready"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "wellcond: interrupted: the report is partial; the run is as it was"
    assert "Traceback" not in errors
    assert "Partial report: interrupted at" in out
    assert "Page: report.html" in out
    told = json.loads((folder / "out.json").read_text())
    jsonschema.validate(told, SCHEMA)
    assert told["interrupted"]
    assert "Partial report" in (folder / "report.html").read_text()


def test_a_full_disk_is_one_line_and_the_summary_appears(folder):
    write(folder)
    process = command("train.py", "--quick", "--output", "/dev/full", "--json", "out.json", stdout=subprocess.PIPE)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors == "wellcond: can't write /dev/full: No space left on device\n"
    assert "stability bound" in out
    assert json.loads((folder / "out.json").read_text())["interrupted"] is None


def test_a_full_standard_output_and_a_reader_that_went_cost_no_page(folder):
    write(folder)
    with open("/dev/full", "w") as full:
        process = command("train.py", "--quick", "--json", "/dev/full", stdout=full)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    line = (
        "wellcond: can't write the summary: No space left on device; can't write /dev/full: No space left on device\n"
    )
    assert errors == line
    assert (folder / "report.html").stat().st_size > 1000
    (folder / "report.html").unlink()
    process = command("train.py", "--quick", stdout=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=300) == 0, errors
    assert errors == ""
    assert (folder / "report.html").exists()


def test_what_could_not_be_measured_fails_a_run_on_notice_and_not_on_severe(folder):
    held = "    given.model.held = torch.ones(3, requires_grad=True) * 2\n"  # can't be copied
    write(folder, f"\n\ndef setup():\n    given = run()\n{held}    return given\n")
    for severity, code in (("severe", 0), ("notice", 1)):
        process = command("train.py", "--quick", "--fail-on", severity, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == code
        assert re.search(r"could not be measured, because of RuntimeError: Only Tensors", " ".join(out.split()))
