"""The contract of the house: imports go down, through a room's door (its `__init__`), and never in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
# From the bottom up. What stands on one line does not import each other.
FLOORS = """private_torch display parameters
linalg penalties hooks one_pass
problem
preconditioners
curvature
steps condition_numbers normalization
trials optim
stability forecasts
variants
examination
report
monitor
results
wellcond
integrations evidence
cli"""
FLOOR = {room: i for i, line in enumerate(FLOORS.splitlines()) for room in line.split()}
PATHS = {".".join(p.relative_to(SOURCE).with_suffix("").parts): p for p in SOURCE.rglob("*.py")}
FILES = {name.removesuffix(".__init__"): path for name, path in PATHS.items()}


def room(module: str) -> str:
    return (module.split(".")[1:] or ["wellcond"])[0]


def imports(module: str) -> set[str]:
    """Modules of ours that a file imports anywhere in it, in functions and for types too."""
    nodes = list(ast.walk(ast.parse(FILES[module].read_text())))
    whole = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    parts = {(n.module, a.name) for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
    # What a door gives may be called as the file behind it: `from wellcond.forecasts import forecast`.
    own = {m for m, _ in parts if m == "wellcond" or room(m) == room(module)}
    names = whole | {f"{m}.{name}" if m in own and f"{m}.{name}" in FILES else m for m, name in parts}
    return names & FILES.keys()


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down_and_through_the_door(module):
    for other in imports(module):
        if room(other) != room(module):
            assert FLOOR[room(other)] < FLOOR[room(module)], f"{module} imports {other}, which is not below it"
            assert other.count(".") <= 1, f"{module} reaches past the door of {room(other)}: {other}"


def test_no_circle_among_files():
    graphlib.TopologicalSorter({module: imports(module) - {module} for module in FILES}).prepare()
