"""Reading examinations back, of every version, and saying what changed between two."""

from __future__ import annotations

import copy
import json
import math
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import torch
from typer.testing import CliRunner

import wellcond as wc
from tests.test_report import examined
from wellcond.cli import app
from wellcond.examination import SavedExamination

OLD = Path(__file__).parent / "data" / "examination-1-without-effect.json"
"""Written by the code as it was before findings had effects, layers normalized rows, runs a forecast."""


@pytest.fixture(scope="module")
def base() -> dict:
    return json.loads(json.dumps(examined().to_json()))


def saved(data: dict, name: str = "a.json") -> SavedExamination:
    return SavedExamination.from_json(data, name)


def changed(data: dict, *path, to) -> dict:
    """A copy with one entry, by its keys, replaced; without it where `to` is ...."""
    new = copy.deepcopy(data)
    at = new
    for key in path[:-1]:
        at = at[key]
    if to is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return new


def estimate(low: float, high: float, value: float | None = None) -> dict:
    middle = math.sqrt(low * high) if value is None else value
    return {"value": middle, "low": low, "high": high, "confidence": 0.997, "how": "told"}


def planted(key: str, severity: str) -> dict:
    return {"key": key, "severity": severity, "title": f"{key} is {severity}", "text": "", "evidence": {}, "remedy": ""}


def test_an_examination_is_read_back_as_it_was(tmp_path):
    examination = examined(quick=True)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(examination.to_json()))
    read = wc.read_examination(path)
    assert read.source == str(path)
    assert read.severity == examination.severity
    assert str(read.findings) == str(examination.findings)
    for kind, label in (("hessian", "Hessian H"), ("hessian_preconditioned", "PᵀHP")):
        c = examination.measurements.figures[kind]
        assert str(read.figures[f"κ̄ of {label}"]) == str(c.kappa_mean)
        assert str(read.figures[f"κ(0.9) of {label}"]) == str(c.kappa(0.9))
    assert read.figures["edge ratio"] == examination.measurements.edge.ratio
    assert str(read.figures["κ of layer “0”, centered"]) == str(examination.measurements.layers[0].centered)


def test_a_file_of_an_older_version_is_read():
    data = json.loads(OLD.read_text(encoding="utf-8"))
    assert "forecast" not in data
    assert "effect" not in data["findings"][0]
    read = wc.read_examination(OLD)
    assert [f.key for f in read.findings] == [f["key"] for f in data["findings"]]
    assert all(f.effect is None for f in read.findings)
    assert read.figures["κ̄ of Hessian H"].value == data["curvature"]["hessian"]["kappa_mean"]["value"]
    schema = json.loads(files("wellcond.examination").joinpath("examination.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(data, schema)


def test_an_old_file_compares_equal_to_a_new_one_of_the_same_run(base):
    """The same network, data and steps: what can be compared is the same."""
    found = wc.compare(wc.read_examination(OLD), saved(base))
    assert found.apart == []
    assert len(found.equal) > 40
    assert found.warnings == found.new == found.gone == found.changed == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read"),
        (b"\x80\x81\xff", "no text"),
        (b"", "not JSON, or is cut off"),
        (b"[1, 2]", "no wellcond examination"),
        (b'{"schema": "something.else/1"}', "no wellcond examination"),
        (b'{"schema": "wellcond.comparison/1"}', "no wellcond examination"),
        (b'{"schema": 3}', "no wellcond examination"),
        (b'{"schema": "wellcond.examination/2"}', "update wellcond"),
        (b'{"schema": "wellcond.examination/1"}', "is damaged: 'severity' is missing"),
        (b"[" * 100_000, "not JSON"),
        (b'{"kind": "run", "schema": "wellcond.monitor/1"}\n{"kind": "end"}\n', "its schema is 'wellcond.monitor/1'"),
        (b'{"schema": "wellcond.examination/1"}\n{}\n', "not JSON, or is cut off"),
    ],
)
def test_what_is_no_examination_is_refused_in_one_line(content, words, tmp_path):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as told:
        wc.read_examination(path)
    assert str(told.value).startswith(str(path))
    assert len(str(told.value).splitlines()) == 1
    good = tmp_path / "good.json"
    good.write_bytes(OLD.read_bytes())
    result = CliRunner().invoke(app, ["compare", str(good), str(path)])
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_torn_file_is_refused_wherever_it_is_torn(tmp_path):
    whole = OLD.read_bytes()
    for length in range(0, len(whole) - 2, 997):
        path = tmp_path / "torn.json"
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"torn\.json"):
            wc.read_examination(path)


@pytest.mark.parametrize(
    "path",
    [
        ("run", "optimizer"),
        ("run", "loss"),
        ("curvature", "hessian", "largest", "high"),
        ("edge_ratio", "ratio"),
        ("layers", 0, "kappa"),
        ("findings", 0, "severity"),
        ("versions",),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(base, path):
    for to in (..., "nonsense", [7]):
        with pytest.raises(ValueError, match=r"a\.json is damaged: ") as told:
            saved(changed(base, *path, to=to))
        assert len(str(told.value).splitlines()) == 1


def test_nothing_changed(base):
    found = wc.compare(saved(base), saved(base, "b.json"))
    assert found.facts == found.apart == found.new == found.gone == found.changed == found.warnings == []
    assert found.severity == wc.results.Severity.GOOD
    assert "as before" in str(found)


def test_findings_new_gone_and_changed(base):
    before = changed(base, "findings", to=[planted(*x) for x in (("a", "severe"), ("b", "notice"), ("c", "good"))])
    after = changed(base, "findings", to=[planted(*x) for x in (("b", "severe"), ("c", "notice"), ("a", "good"))])
    found = wc.compare(saved(before), saved(after))
    assert [f.key for f in found.new] == ["c"]
    assert [f.key for f in found.gone] == ["a"]
    assert [(was.severity.word, now.severity.word) for was, now in found.changed] == [("notice", "severe")]
    assert found.severity == wc.results.Severity.SEVERE
    assert wc.compare(saved(after), saved(before)).severity == wc.results.Severity.SEVERE  # a, which is new


def test_figures_apart_come_with_their_factor_and_overlapping_ones_do_not(base):
    where = ("curvature", "hessian", "kappa_mean")
    before = changed(base, *where, to=estimate(10, 20))
    (moved,) = wc.compare(saved(before), saved(changed(base, *where, to=estimate(40, 50)))).apart
    assert moved.figure == "κ̄ of Hessian H"
    assert (moved.factor.low, moved.factor.high) == (2, 5)
    assert wc.compare(saved(before), saved(changed(base, *where, to=estimate(19, 50)))).apart == []
    unbounded = changed(base, *where, to=estimate(100, 100) | {"high": "inf"})
    (moved,) = wc.compare(saved(before), saved(unbounded)).apart
    assert "at least 5" in str(moved)
    (moved,) = wc.compare(saved(unbounded), saved(before)).apart
    assert "× less than 0.2" in str(moved)
    (moved,) = wc.compare(saved(before), saved(changed(base, *where, to=estimate(-5, -4, -4.5)))).apart
    assert not moved.factor.defined
    nowhere = saved(changed(base, *where, to=estimate(0, 1) | {"value": None}))
    assert "κ̄ of Hessian H" in wc.compare(saved(before), nowhere).not_compared


def test_what_differs_between_the_runs_is_told_and_other_models_warn(base):
    other = changed(base, "run", "model", to="Other")
    other = changed(other, "run", "dtype", to="float32")
    other["run"]["optimizer"]["groups"][0]["lr"] = 2.215688404129026
    other["versions"]["torch"] = "9.9"
    found = wc.compare(saved(base), saved(other))
    assert {"model", "dtype", "learning rate", "version of torch"} == {name for name, _, _ in found.facts}
    assert ("learning rate", "0.01", "2.21569") in found.facts
    assert [w.split(":")[0] for w in found.warnings] == ["different models", "different dtypes"]


def test_figures_of_another_theta_are_not_compared():
    """Whole against sampled: κ(ρ) belongs to its θ."""
    found = wc.compare(examined(), examined(quick=True))
    assert not found.warnings  # 44 parameters: whole either way
    whole = json.loads(json.dumps(examined().to_json()))
    other = changed(whole, "curvature", "hessian", "theta", to=1e-2)
    other["curvature"]["hessian"]["kappa_90"] = estimate(1e8, 2e8)
    found = wc.compare(saved(whole), saved(other))
    assert any("θ of Hessian H" in w for w in found.warnings)
    assert "κ(0.9) of Hessian H" in found.not_compared
    assert found.apart == []


def test_a_real_change_of_learning_rate():
    slow = examined(optimizer=lambda p, lr: torch.optim.SGD(p, lr=1e-6))
    fast = examined(optimizer=lambda p, lr: torch.optim.SGD(p, lr=1e-5))
    found = wc.compare(slow, fast)
    assert ("learning rate", "1e-06", "1e-05") in found.facts
    ratio = next(c for c in found.apart if c.figure == "edge ratio")
    assert ratio.factor.value == pytest.approx(10, rel=1e-3)


def test_only_examinations_are_compared():
    with pytest.raises(TypeError, match="read_examination"):
        wc.compare("a.json", "b.json")


def test_the_command(base, tmp_path):
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    before.write_text(json.dumps(base))
    worse = changed(base, "findings", to=[*base["findings"], planted("learning_rate", "severe")])
    worse["run"]["loss"] *= 2
    after.write_text(json.dumps(changed(worse, "severity", to="severe")))
    invoke = lambda *arguments: CliRunner().invoke(app, ["compare", str(before), str(after), *arguments])  # noqa: E731
    result = invoke()
    assert result.exit_code == 0
    assert "+ new, severe: learning_rate is severe" in result.stdout
    assert "loss: " in result.stdout
    assert invoke("--fail-on", "severe").exit_code == 1
    same = CliRunner().invoke(app, ["compare", str(after), str(after), "--fail-on", "notice"])
    assert same.exit_code == 0  # severe, but not new
    assert CliRunner().invoke(app, ["compare", str(after), str(before), "--fail-on", "notice"]).exit_code == 0
    told = json.loads(invoke("--json").stdout)
    schema = json.loads(files("wellcond.report").joinpath("comparison.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(told, schema)
    assert told["findings"]["new"][0]["key"] == "learning_rate"
    assert told["figures"]["apart"][0]["figure"] == "loss"
    assert "Example:" in CliRunner().invoke(app, ["compare", "--help"]).output


def test_markup_in_a_file_stays_text(base, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(changed(base, "findings", to=[planted("[bold red]x[/] :smile:", "severe")])))
    result = CliRunner().invoke(app, ["compare", str(path), str(path)])
    assert "[bold red]x[/] :smile:" in result.stdout
