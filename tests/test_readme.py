"""The README's examples run."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_examples_run(capsys):
    torch.manual_seed(0)
    names: dict = {}
    exec(BLOCKS[0], names)
    assert "severe The inputs are not scaled" in capsys.readouterr().out
    names["data"] = (names["X"], names["y"])
    library = next(block for block in BLOCKS if "wc.preconditioner_of" in block)
    names["v"] = torch.ones(sum(p.numel() for p in names["model"].parameters()))
    exec(library, names)
    assert names["e"].values.shape == (6,)
    assert names["c"].kappa(0.5).low >= 1


def test_what_it_links_to_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", README):
        assert (Path(__file__).parents[1] / "".join(target)).exists(), target
