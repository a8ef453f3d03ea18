"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the house: one new file and one line each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = re.split(r"^### ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
STEP = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)


def test_there_are_four():
    assert [recipe.split("\n")[0] for recipe in RECIPES] == [
        f"A new {what}" for what in ("penalty", "optimizer", "finding", "claim")
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.split("\n")[0])
def test_one_new_file_and_one_line_are_enough(recipe, tmp_path):
    (new, code), (door, line), (then, check) = STEP.findall(recipe)
    assert then == "then"
    assert line.count("\n") == 1
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    assert not (tmp_path / new).exists()
    (tmp_path / new).write_text(code, encoding="utf-8")
    text = (tmp_path / door).read_text(encoding="utf-8")
    # An indented line is an entry of the list of names, the others are imports at the end.
    text = re.sub(r"^(NAMES\b.*\(\n)", rf"\g<1>{line}", text, flags=re.MULTILINE) if line[0] == " " else text + line
    assert line in text
    (tmp_path / door).write_text(text, encoding="utf-8")
    python = subprocess.run(
        [sys.executable, "-c", check],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert python.returncode == 0, python.stderr
