"""The page, the terminal and the JSON say what was measured, and nothing of the user's becomes markup."""

from __future__ import annotations

import io
import json
import math
from importlib.resources import files

import jsonschema
import pytest
import torch
from rich.console import Console
from torch import nn

import wellcond as wc
from tests.problems import make, train
from wellcond.report import print_summary
from wellcond.report.charts import charts

INJECTION = "<img src=x onerror=alert(1)></script><script>document.title='owned'</script>[bold red]"


def examined(name: str = "tanh MLP", *, optimizer=torch.optim.Adam, **options) -> wc.results.Examination:
    case = make(name)
    made = optimizer(case.model.parameters(), lr=1e-2)
    train(case, made, 5)
    return wc.examine(case.model, case.loss_fn, case.data, made, **options)


@pytest.fixture(scope="module")
def examination() -> wc.results.Examination:
    return examined()


def hostile() -> wc.results.Examination:
    """A network whose class and layers are named by an attacker."""
    model = nn.Sequential()
    model._modules[INJECTION] = nn.Linear(4, 2)
    model.__class__ = type(INJECTION, (nn.Sequential,), {})
    model.unused = nn.Parameter(torch.ones(3))
    model._parameters["un" + INJECTION] = model._parameters.pop("unused")
    return wc.examine(model, nn.MSELoss(), (100 + torch.randn(9, 4), torch.randn(9, 2)))


EXAMINATIONS = {
    "whole": examined,
    "quick": lambda: examined(quick=True),
    "no optimizer": lambda: wc.examine(make("ReLU MLP").model, make("ReLU MLP").loss_fn, make("ReLU MLP").data),
    "SGD": lambda: examined(optimizer=torch.optim.SGD),
    "Gauss-Newton": lambda: examined(curvature="gauss-newton"),
    "no layers": lambda: wc.examine(nn.LayerNorm(3), nn.MSELoss(), (torch.randn(5, 3), torch.randn(5, 3))),
    "hostile": hostile,
}


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_every_examination_fits_the_schema_and_is_shown_whole(name):
    examination = EXAMINATIONS[name]()
    written = json.loads(json.dumps(examination.to_json(), allow_nan=False))
    schema = json.loads(files("wellcond.examination").joinpath("examination.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(written, schema)
    buffer = io.StringIO()
    print_summary(examination, Console(file=buffer, width=80))
    text = buffer.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    joined = "".join(text.split())
    for found in examination.findings:
        assert "".join(found.title.split()) in joined
    from wellcond.report import page

    assert len(page(examination)) < 6e6


def test_json_holds_the_figures(examination):
    written, m = examination.to_json(), examination.measurements
    assert written["schema"] == "wellcond.examination/1"
    own = written["curvature"]["hessian_preconditioned"]
    assert own["largest"]["value"] == m.figures["hessian_preconditioned"].largest.value
    assert own["kappa_50"]["low"] <= own["kappa_50"]["value"] <= own["kappa_50"]["high"]
    assert written["run"]["loss"] == m.loss
    assert written["run"]["optimizer"]["name"] == "Adam"
    assert written["run"]["optimizer"]["groups"][0]["betas"] == [0.9, 0.999]
    assert written["edge_ratio"]["ratio"]["value"] == m.edge.ratio.value
    assert [x["largest_eigenvalue"]["value"] for x in written["layers"]] == [x.largest.value for x in m.layers]
    assert [(x["group"], x["groups"]) for x in written["layers"]] == [(0, 1)] * len(m.layers)
    assert [f["key"] for f in written["findings"]] == [f.key for f in examination.findings]
    assert all(e["how"] for e in _estimates(written))


def _estimates(tree):
    if isinstance(tree, dict):
        if "how" in tree:
            yield tree
        for value in tree.values():
            yield from _estimates(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _estimates(value)


def test_json_has_no_infinity_and_no_nan():
    written = examined(quick=True).to_json()
    values = {json.dumps(e[end]) for e in _estimates(written) for end in ("value", "low", "high")}
    assert '"inf"' in values
    assert "null" in values
    assert float("inf") == float(json.loads('"inf"'))
    assert not any(isinstance(e["value"], float) and math.isnan(e["value"]) for e in _estimates(written))


def test_the_page_shows_every_figure_and_is_offline(examination, tmp_path):
    page = examination.save(tmp_path / "report.html").read_text(encoding="utf-8")
    m = examination.measurements
    for figure in ("hessian", "hessian_preconditioned"):
        assert m.figures[figure].largest.with_error() in page
        assert str(m.figures[figure].kappa(0.9)) in page
    for found in examination.findings:
        assert found.key in page
    head = page[: page.index("<script>")]
    assert "http" not in head
    assert " src=" not in head
    assert "@import" not in head
    assert "<link" not in page
    assert all(f"chart-{key}" in page for chart in charts(m) for key, _ in chart.panels)


def test_what_came_from_the_user_stays_text(tmp_path):
    page = hostile().save(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "document.title='owned'</script>" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_points_without_a_preconditioner_and_without_layers_draw_fewer_charts():
    keys = lambda name: [c.key for c in charts(EXAMINATIONS[name]().measurements)]  # noqa: E731
    assert keys("whole") == ["spectrum", "layers", "forecast", "rates", "rates-by-parameter", "row-norms"]
    assert keys("quick") == ["spectrum", "layers", "rates", "rates-by-parameter", "row-norms"]
    assert keys("SGD") == ["spectrum", "layers", "forecast"]
    assert keys("no optimizer") == ["spectrum", "layers", "forecast"]
    assert keys("no layers") == ["spectrum", "forecast"]


def test_the_spectrum_chart_counts_eigenvalues(examination):
    spectrum = next(c for c in charts(examination.measurements) if c.key == "spectrum")
    values = examination.measurements.figures["hessian"].spectrum
    trace = spectrum.figures[0]["data"][0]
    for x, y in list(zip(trace["x"], trace["y"], strict=True))[::20]:
        expected = int((values >= x * (1 - 1e-12)).sum())
        assert y == pytest.approx(max(0.5, expected))


def test_at_the_bound_of_the_spectrum_chart_the_edge_ratio_is_one(examination):
    m = examination.measurements
    spectrum = next(c for c in charts(m) if c.key == "spectrum")
    bound = spectrum.figures[0]["data"][-1]["x"][0]
    assert m.figures["hessian_preconditioned"].largest.value / bound == pytest.approx(m.edge.ratio.value)


def test_the_layers_chart_and_the_rates_hold_the_figures(examination):
    m = examination.measurements
    drawn = {chart.key: chart.figures[0]["data"][0] for chart in charts(m)}
    assert 10 ** drawn["layers"]["z"][0][0] == pytest.approx(m.layers[0].kappa.value)
    assert 10 ** drawn["layers"]["z"][1][3] == pytest.approx(m.layers[1].standardized.value)
    rates = next(chart for chart in charts(m) if chart.key == "rates")
    assert sum(sum(bars["y"]) for bars in rates.figures[0]["data"]) == m.parameters
