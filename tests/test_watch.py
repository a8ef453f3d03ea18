"""`wellcond watch`: a history in the terminal, running, finished, or none at all."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

import wellcond as wc
from tests.test_monitor import followed
from wellcond.cli import app
from wellcond.monitor import terminal
from wellcond.monitor.record import FindingChange


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["watch", *arguments])


def shown(history: wc.results.History, width: int = 80) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(terminal.view(history, width))
    return buffer.getvalue()


def test_a_finished_run_is_shown_once(tmp_path):
    path = tmp_path / "run.jsonl"
    _, _, monitor = followed(path=path, steps=12)
    monitor.remove()
    for options in ([], ["--once"]):
        result = invoke(str(path), *options)
        assert result.exit_code == 0, result.output
        assert "finished" in result.stdout
        assert "step 11, 6 measurements" in result.stdout
        for label in ("edge ratio", "λ_max(PᵀHP)", "λ_max(H)", "κ̄", "learning rate"):
            assert label in result.stdout
        for _, title in list(monitor.history.findings().values())[:1]:
            assert "".join(title.split()) in "".join(result.stdout.split())


def test_the_page_of_a_run_is_written_while_it_runs(tmp_path):
    path, page = tmp_path / "run.jsonl", tmp_path / "page.html"
    _, _, monitor = followed(path=path, steps=3)
    result = invoke(str(path), "--output", str(page))
    assert result.exit_code == 0, result.output
    assert "running, or killed" in result.stdout
    assert str(monitor.history[-1].edge_ratio) in page.read_text(encoding="utf-8")
    result = invoke(str(path), "--output", str(tmp_path / "no" / "page.html"))
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_nothing_is_wider_than_the_terminal(width):
    _, _, monitor = followed(steps=12)
    assert max(cell_len(line) for line in shown(monitor.history, width).splitlines()) <= width


def test_the_worst_findings_come_first_and_names_are_no_markup():
    _, _, monitor = followed(steps=1)
    monitor.history.run["model"] = "[bold red]Net[/]"
    monitor.history.records.append(
        wc.results.Record(
            9,
            1.0,
            "every",
            failed="[red]no[/]",
            changes=[FindingChange("a", "severe", None, "[blink]worst[/]")],
            jumps=[8],
        )
    )
    text = shown(monitor.history)
    assert "[bold red]Net[/]" in text
    assert "could not be measured, because [red]no[/]" in text
    assert "jumped at step 8" in text
    marks = [line[0] for line in text.splitlines() if line[:1] in "✖▲✔" and line]
    assert marks == sorted(marks, key="✖▲✔".index)
    assert "✖ [blink]worst[/]" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't read"),
        (b"", "is empty"),
        (b'{"kind": "run", "sch', "holds half a line"),
        (b"epoch,loss\n1,2\n", "is not a history"),
        (b"{}\n", "is not a history"),
        (b'{\n  "schema": "wellcond.examination/1"\n}\n', "is not a history of wellcond.Monitor, by its first line"),
        (b'{"kind": "run", "schema": "wellcond.monitor/2", "run": {"new": 1}}\n', "update wellcond"),
        (bytes(range(256)), "is not a history"),
    ],
)
def test_what_is_no_history_is_one_line(tmp_path, content, words):
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_bytes(content)
    result = invoke(str(path))
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert words in result.stderr
    assert "run.jsonl" in result.stderr
    assert invoke(str(tmp_path)).exit_code == 2


def test_a_running_run_is_followed_to_its_end(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    _, _, monitor = followed(path=path, every=1, steps=1)
    seen: list[int] = []

    def meanwhile(seconds: float) -> None:
        seen.append(len(wc.read_history(path)))
        if len(seen) < 3:
            monitor.measure()
        else:
            monitor.remove()

    monkeypatch.setattr(terminal.time, "sleep", meanwhile)
    buffer = io.StringIO()
    terminal.watch(path, Console(file=buffer, width=80, force_terminal=True))
    assert seen == [1, 2, 3]
    assert "3 measurements" in buffer.getvalue()
    assert "finished" in buffer.getvalue().splitlines()[-1] or "finished" in buffer.getvalue()


def test_ctrl_c_ends_watching_without_a_word(tmp_path):
    """A real process on a pseudo-terminal, a real signal."""
    path = tmp_path / "run.jsonl"
    _, _, monitor = followed(path=path, steps=3)
    leader, follower = os.openpty()
    command = [sys.executable, "-c", "from wellcond.cli import main; main()", "watch", str(path)]
    process = subprocess.Popen(command, stdout=follower, stderr=subprocess.PIPE, text=True)
    os.close(follower)
    seen = b""
    while b"running, or killed" not in seen:
        seen += os.read(leader, 4096)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    os.close(leader)
    assert process.returncode == 0
    assert errors == ""
    assert not monitor.history.finished


def test_sparklines():
    assert terminal.sparkline([], 5) == ""
    assert terminal.sparkline([3.0, 3.0], 5) == "▁▁"
    assert terminal.sparkline([1e-6, 1.0], 5) == "▁█"
    assert terminal.sparkline([1.0, 10.0, 1000.0], 5) == "▁▃█"  # logarithmic
    assert terminal.sparkline([-1.0, 1.0, math.inf], 5) == "▁█×"
    assert len(terminal.sparkline(list(range(1000)), 30)) <= 30
    assert terminal.sparkline([0.0] * 500 + [9.0] + [0.0] * 499, 20).count("█") == 1  # a spike is not averaged away
