"""What runs are told is what tests/record.py wrote down before; and that the comparison can fail."""

import copy

import pytest

from tests import record
from tests.agreement import FLOAT32, FLOAT64, differences


@pytest.mark.parametrize("name", record.RUNS)
def test_result_is_as_recorded(name):
    rules = FLOAT32 if name in record.FLOAT32 else FLOAT64
    assert differences(record.read(name), record.result(name), rules) == []


@pytest.mark.parametrize("name", record.REFUSALS)
def test_refusal_is_as_recorded(name):
    assert record.refusal(name) == record.read("refusals")[name]


def test_each_file_has_its_test():
    assert {file.stem for file in record.FOLDER.iterdir()} == {*record.RUNS, "refusals"}
    assert record.read("refusals").keys() == record.REFUSALS.keys()


EXAMINATION, LARGER = "examine_healthy_residual", "examine_larger_than_dense"


def _times(factor):
    return lambda x: x * factor


CHANGES = {
    "loss": (("run", "loss"), _times(1 + 1e-9)),
    "value": (("curvature", "hessian", "kappa_mean", "value"), _times(1 + 1e-9)),
    "end": (("curvature", "gauss_newton", "largest", "high"), _times(1 + 1e-3)),
    "small eigenvalue": (("curvature", "hessian", "smallest", "value"), _times(1 + 1e-9)),
    "curve": (("forecast", "curves", "as it is", "losses", 20), _times(1 + 1e-9)),
    "count": (("curvature", "hessian", "products"), lambda x: x + 1),
    "infinite": (("curvature", "hessian", "kappa_90", "high"), lambda x: "inf"),
    "undefined": (("edge_ratio", "ratio", "value"), lambda x: None),
    "severity": (("findings", 0, "severity"), lambda x: "severe"),
    "number in a title": (("findings", 0, "title"), lambda x: x.replace("9", "8", 1) if "9" in x else x + "1"),
    "how": (("edge_ratio", "ratio", "how"), lambda x: x + ", twice"),
    "note": (("notes",), lambda x: [*x, "Measured in float32."]),
    "finding gone": (("findings",), lambda x: x[:-1]),
    "key gone": (("layers", 0), lambda x: {k: v for k, v in x.items() if k != "rank"}),
    "optimizer": (("run", "optimizer", "name"), lambda x: "Adam"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name):
    where, change = CHANGES[name]
    before = record.read(EXAMINATION)
    assert differences(before, _changed(before, where, change), FLOAT64)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        (("run", "loss"), _times(1.01)),
        (("curvature", "hessian", "largest", "value"), _times(1.1)),
        (("curvature", "hessian", "kappa_mean", "value"), _times(100.0)),
        (("findings", 0, "severity"), lambda x: "severe"),
        (("findings", 0, "title"), lambda x: x + " It is not."),
        (("findings", 1, "key"), lambda x: "inputs"),
        (("run", "parameters"), lambda x: x + 12),
    ],
)
def test_a_change_is_seen_in_float32(where, change):
    before = record.read(LARGER)
    assert differences(before, _changed(before, where, change), FLOAT32)


@pytest.mark.parametrize("name", record.RUNS)
def test_every_figure_is_compared(name):
    """In float32 the ends of an interval may move, and only whether they are finite is compared."""
    before, rules = record.read(name), FLOAT32 if name in record.FLOAT32 else FLOAT64
    seen = [line for line in differences(before, _scaled(before, 3.0, 1e9), rules) if "its own interval" not in line]
    left_out = ("low", "high") if rules.inside else ()
    assert len(seen) == sum(key not in left_out for key in _figures(before))


def test_rounding_is_not_seen():
    before = record.read(EXAMINATION)
    assert differences(before, _scaled(before, 1 + 1e-12), FLOAT64) == []


def _figures(found, key=None):
    """The key of each number that is not whole."""
    if isinstance(found, dict | list):
        for key, below in found.items() if isinstance(found, dict) else ((key, x) for x in found):
            yield from _figures(below, key)
    elif isinstance(found, float):
        yield key


def _scaled(found, factor, added=0.0):
    """With every such number changed."""
    if isinstance(found, dict):
        return {key: _scaled(below, factor, added) for key, below in found.items()}
    if isinstance(found, list):
        return [_scaled(below, factor, added) for below in found]
    return factor * found + added if isinstance(found, float) else found


def _changed(found, where, change):
    found = copy.copy(found)
    found[where[0]] = change(found[where[0]]) if len(where) == 1 else _changed(found[where[0]], where[1:], change)
    return found
