"""The command: the main job, and one line for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from wellcond.cli import app

HEAD = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import wellcond as wc

torch.manual_seed(0)
X, Y = torch.randn(40, 3), torch.randn(40, 1)


def run(model=None, loss_fn=None, data=(X, Y), optimizer=torch.optim.Adam, steps=3, **options):
    model, loss_fn = model or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), loss_fn or nn.MSELoss()
    made = optimizer(model.parameters())
    for _ in range(steps):
        made.zero_grad()
        nn.MSELoss()(model(X), Y).backward()
        made.step()
    return wc.TrainingRun(model, loss_fn, data, made, **options)


class Leftover(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x):
        return self.used(x)


def setup():
    return run()
"""


def write(folder: Path, body: str = "", name: str = "train.py") -> None:
    (folder / name).write_text(HEAD + body)


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["examine", *arguments])


def test_the_main_job(folder):
    write(folder)
    result = invoke("train.py", "--json", "out.json", "--output", "page.html")
    assert result.exit_code == 0, result.output
    assert "of its stability bound" in result.stdout.replace("\n", " ")
    written = json.loads((folder / "out.json").read_text())
    assert written["run"]["parameters"] == 21
    assert "<h1>" in (folder / "page.html").read_text()


def test_any_function_of_any_file_or_module(folder):
    write(folder, "\n\ndef other():\n    return run(steps=2)\n")
    assert invoke("train.py:other", "--json", "-").exit_code == 0
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    write(folder / "package", name="inner.py")
    result = invoke("package.inner:setup", "--quick")
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").exists()


def test_json_alone_on_standard_output(folder):
    write(folder)
    result = invoke("train.py", "--json", "-")
    assert json.loads(result.stdout)["schema"] == "wellcond.examination/1"
    assert "stability bound" in result.stderr.replace("\n", " ")


def test_options_reach_the_examination(folder):
    write(folder, "\n\ndef batched():\n    return run(data=DataLoader(TensorDataset(X, Y), batch_size=8))\n")
    options = ["--batches", "2", "--seed", "5", "--dtype", "float32", "--mode", "eval", "--curvature", "gauss-newton"]
    result = invoke("train.py:batched", "--json", "out.json", "--quick", "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    run = json.loads((folder / "out.json").read_text())["run"]
    expected = {
        "batches": 2,
        "examples": 16,
        "seed": 5,
        "dtype": "float32",
        "mode": "eval",
        "curvature": "gauss-newton",
    }
    assert {key: run[key] for key in expected} == expected


def test_a_checkpoint_is_loaded(folder):
    write(folder)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    loss = float(_targets().square().mean())
    for state in (model.state_dict(), {"model": model.state_dict(), "epoch": 3}):
        torch.save(state, folder / "state.pt")
        result = invoke("train.py", "--checkpoint", "state.pt", "--json", "out.json", "--quick")
        assert result.exit_code == 0, result.output
        assert json.loads((folder / "out.json").read_text())["run"]["loss"] == pytest.approx(loss, rel=1e-6)


def _targets() -> torch.Tensor:
    torch.manual_seed(0)
    torch.randn(40, 3)
    return torch.randn(40, 1)


def test_fail_on(folder):
    write(folder, "\n\ndef far():\n    return run(optimizer=lambda p: torch.optim.SGD(p, lr=1e4), steps=0)\n")
    assert invoke("train.py:far", "--fail-on", "severe").exit_code == 1
    assert invoke("train.py:far").exit_code == 0
    write(folder, "\n\ndef fine():\n    return wc.TrainingRun(nn.Linear(3, 1), nn.MSELoss(), (X, Y))\n", "fine.py")
    assert invoke("fine.py:fine", "--fail-on", "notice").exit_code == 0


def test_exit_codes_of_a_real_process(folder):
    """What CI sees: 0 done, 1 found, 2 the user's mistake; and of compare, where only new findings count."""
    write(folder, "\n\ndef far():\n    return run(optimizer=lambda p: torch.optim.SGD(p, lr=1e4), steps=0)\n")

    def code(*arguments: str) -> int:
        command = [sys.executable, "-c", "from wellcond.cli import main; main()", *arguments]
        return subprocess.run(command, capture_output=True, env={**os.environ, "COLUMNS": "80"}).returncode

    assert code("examine", "train.py", "--quick", "--json", "fine.json", "--fail-on", "severe") == 0
    assert code("examine", "train.py:far", "--quick", "--json", "far.json") == 0
    assert code("examine", "train.py:far", "--quick", "--fail-on", "severe") == 1
    assert code("examine", "train.py:far", "--fail-on", "catastrophic") == 2
    assert code("examine", "train.py:nowhere", "--fail-on", "severe") == 2
    assert code("compare", "fine.json", "far.json") == 0
    assert code("compare", "fine.json", "far.json", "--fail-on", "severe") == 1
    assert code("compare", "far.json", "far.json", "--fail-on", "notice") == 0
    assert code("compare", "far.json", "train.py") == 2


def test_help_and_version():
    runner = CliRunner()
    assert "wellcond examine" in runner.invoke(app, ["--help"]).output
    helped = runner.invoke(app, ["examine", "--help"]).output
    assert "Example:" in helped
    assert "--fail-on" in helped
    assert runner.invoke(app, ["--version"]).output.startswith("wellcond ")


# name: (body appended to the file, target, words of the message)
MISTAKES = {
    "file missing": ("", "nowhere.py", "nowhere.py does not exist"),
    "function missing": ("", "train.py:nothing", "no function nothing(); it defines run, setup"),
    "module missing": ("", "no_such_module", "no module no_such_module"),
    "needs arguments": ("def f(x):\n    pass\n", "train.py:f", "needs arguments"),
    "returns something else": ("def f():\n    return 3\n", "train.py:f", "returned int;"),
    "empty data": ("def f():\n    return run(data=[])\n", "train.py:f", "data is empty"),
    "one-shot generator": (
        "def f():\n    return run(data=(b for b in [(X, Y)]))\n",
        "train.py:f",
        "one-shot generator",
    ),
    "NaN loss": ("def f():\n    return run(data=(X * torch.nan, Y))\n", "train.py:f", "loss of batch 0 is nan"),
    "infinite loss": (
        "def f():\n    return run(loss_fn=lambda o, t: (o - t).abs().mean() / 0)\n",
        "train.py:f",
        "loss of batch 0 is inf",
    ),
    "no trainable parameters": (
        "def f():\n    r = run(steps=1)\n    r.model.requires_grad_(False)\n    return r\n",
        "train.py:f",
        "no trainable parameters",
    ),
    "other parameters": (
        "def f():\n    r = run()\n    r.model = nn.Linear(3, 1)\n    return r\n",
        "train.py:f",
        "not the model's",
    ),
    "fresh optimizer": ("def f():\n    return run(steps=0)\n", "train.py:f", "take a step first"),
    "loss not a scalar": (
        "def f():\n    return run(loss_fn=nn.MSELoss(reduction='none'))\n",
        "train.py:f",
        "not a scalar",
    ),
    "mixed precision of the parameters": (
        "def f():\n    m = nn.Sequential(nn.Linear(3, 2).half(), nn.Linear(2, 1).double())\n"
        "    return wc.TrainingRun(m, nn.MSELoss(), (X, Y))\n",
        "train.py:f",
        "give dtype=torch.float32",
    ),
    "mixed devices": (
        "def f():\n    m = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, device='meta'))\n"
        "    return wc.TrainingRun(m, nn.MSELoss(), (X, Y))\n",
        "train.py:f",
        "move the model to one device",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_two(folder, name):
    body, target, words = MISTAKES[name]
    write(folder, "\n\n" + body)
    result = invoke(target)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("wellcond: ")
    assert words in lines[0]
    assert not (folder / "report.html").exists()
    assert "Traceback" in invoke(target, "--traceback").stderr


THEIRS = {
    "exit in forward": (
        "class Exits(nn.Linear):\n    def forward(self, x):\n        import sys\n\n        sys.exit(4)\n\n\n"
        "def setup():\n    return wc.TrainingRun(Exits(3, 1), nn.MSELoss(), (X, Y))\n",
        "SystemExit",
    ),
    "exotic exception": ("class Odd(BaseException):\n    pass\n\n\ndef setup():\n    raise Odd\n", "Odd"),
    "import error": ("import nothing_of_that_name\n", "nothing_of_that_name"),
    "syntax error": ("def broken(:\n", "SyntaxError"),
    "error in setup": ("def setup():\n    return run(undefined=1)\n", "TypeError"),
    "error in forward": (
        "def setup():\n    r = run()\n    r.data = (torch.randn(4, 9), Y[:4])\n    return r\n",
        "mat1 and mat2",
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_their_traceback_is_shown_and_ours_is_not(folder, name):
    body, words = THEIRS[name]
    write(folder, "\n\n" + body)
    result = invoke("train.py")
    assert result.exit_code == 2
    assert words in result.stderr
    assert 'File "' in result.stderr
    assert str(Path(__file__).parents[1] / "src") not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("wellcond: ")


def test_a_target_named_like_a_standard_module(folder):
    write(folder, name="json.py")
    result = invoke("json.py", "--quick")
    assert result.exit_code == 0, result.output


def test_what_the_user_prints_stays_out_of_the_json(folder):
    write(folder, "\n\nprint('importing')\n\n\ndef chatty():\n    print('hello')\n    return run()\n")
    result = invoke("train.py:chatty", "--quick", "--json", "-")
    assert json.loads(result.stdout)["run"]["parameters"] == 21
    assert "hello" in result.stderr


@pytest.mark.parametrize("target", ["", ".", ":setup", "./"])
def test_an_empty_target_is_one_line(folder, target):
    result = invoke(target)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_a_parameter_not_reached_is_said(folder):
    write(folder, "\n\ndef leftover():\n    return run(model=Leftover())\n")
    result = invoke("train.py:leftover")
    assert result.exit_code == 0, result.output
    assert "unused.weight" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output", "no/such/folder/report.html"], "does not exist"),
        (["--output", "."], "is a directory"),
        (["--json", "no/such/folder/out.json"], "does not exist"),
        (["--checkpoint", "missing.pt"], "does not exist"),
        (["--checkpoint", "train.py"], "can't be read as a checkpoint"),
        (["--device", "nonsense"], "device 'nonsense'"),
    ],
)
def test_bad_options_are_one_line(folder, options, words):
    write(folder)
    result = invoke("train.py", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_checkpoint_that_does_not_fit_is_one_line(folder):
    write(folder)
    torch.save({"weight": torch.ones(2)}, folder / "other.pt")
    result = invoke("train.py", "--checkpoint", "other.pt")
    assert result.exit_code == 2
    assert "does not fit" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("where", ["setup", "measuring"])
def test_ctrl_c_ends_cleanly(folder, where):
    """A real process, a real signal."""
    slow = {
        "setup": "def setup():\n    print('ready', flush=True)\n    import time\n    time.sleep(60)\n",
        "measuring": (
            "def slow(o, t):\n    print('ready', flush=True)\n    import time\n    time.sleep(0.2)\n"
            "    return (o - t).square().mean()\n\n\ndef setup():\n    return run(loss_fn=slow)\n"
        ),
    }[where]
    write(folder, "\n\n" + slow)
    command = [sys.executable, "-c", "from wellcond.cli import main; main()", "examine", "train.py"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert process.stdout.readline().strip() == "ready"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "wellcond: interrupted; the run is as it was"
    assert "Traceback" not in errors
