"""The README's examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import wellcond as wc
from wellcond.preconditioners.reading import supported

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_examples_run(capsys):
    torch.manual_seed(0)
    names: dict = {}
    exec(BLOCKS[0], names)
    assert "severe The inputs are off-center" in capsys.readouterr().out
    names["data"] = (names["X"], names["y"])
    library = next(block for block in BLOCKS if "wc.preconditioner_of" in block)
    names["v"] = torch.ones(sum(p.numel() for p in names["model"].parameters()))
    exec(library, names)
    assert names["e"].values.shape == (6,)
    assert names["c"].kappa(0.5).low >= 1


def test_the_penalties_of_the_readme_and_their_page_run():
    names: dict = {}
    exec(BLOCKS[0], names)
    for block in (b for b in BLOCKS if "handle" in b):
        exec(block, names)
        names["loss_fn"](names["model"](names["X"]), names["y"]).backward()
        names["optimizer"].step()
    assert names["handle"].strength == 0.02
    assert names["optimizer"].regularization.penalty.strength == 0.01
    text = (ROOT / "docs" / "l1-with-adam.md").read_text(encoding="utf-8")
    first, third = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(first, names)
    assert names["handle"].names() == ["weight"]

    class MyOptimizer(torch.optim.RMSprop):
        pass

    exec(third, names | {"MyOptimizer": MyOptimizer})
    assert "MyOptimizer" in supported()


def test_the_monitors_of_the_readme_and_their_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(BLOCKS[0], names)
    exec(next(block for block in BLOCKS if "wc.Monitor" in block), names)
    assert names["monitor"].step == 1000
    assert wc.read_history("monitor.jsonl").finished
    names["loader"] = [(names["X"][i : i + 50], names["y"][i : i + 50]) for i in range(0, 500, 50)]
    text = (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert names["monitor"].step == 10
    assert (tmp_path / "monitor.html").exists()


@pytest.mark.parametrize("page", ["curvature", "forecast", "spectra", "stability"])
def test_the_examples_of_a_page_run(page):
    torch.manual_seed(0)
    names: dict = {}
    exec(BLOCKS[0], names)
    names |= {
        "data": (names["X"], names["y"]),
        "problem": wc.Problem(names["model"], names["loss_fn"], (names["X"], names["y"])),
    }
    size = names["problem"].size
    P = wc.preconditioner_of(names["optimizer"])
    names["Hz"] = wc.Hessian(names["problem"]).preconditioned(P)
    names |= {"v": torch.ones(size), "V": torch.ones(size, 2)}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)


@pytest.mark.parametrize("page", ["normalization", "preconditioning", "what-if"])
def test_a_page_runs_as_it_is_written(page, capsys):
    """With no name but those that it makes itself; and what it prints is in its table."""
    text, names = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    printed = capsys.readouterr().out
    if page == "normalization":
        rows = re.findall(r"^\| (\d) \| ([^%]*) \| \d\d %", text, re.MULTILINE)
        assert printed.split() == " ".join(f"{name} {figures}" for name, figures in rows).replace(" | ", " ").split()
        assert len(rows) == 3
    if page == "preconditioning":
        assert names["Hz"].size == sum(p.numel() for p in names["model"].parameters())


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_what_it_links_to_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", text):
        assert ((ROOT / page).parent / "".join(target)).exists(), target
