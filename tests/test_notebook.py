"""Rich representations: every object's figures, nothing of the user's as markup; and plots for papers."""

from __future__ import annotations

import html.parser

import matplotlib
import pytest
import torch
from torch import nn

import wellcond as wc
from tests.test_monitor import followed
from tests.test_report import INJECTION, examined, hostile
from wellcond.linalg import MatrixOperator
from wellcond.trials.trials import Effect

matplotlib.use("Agg")


class Tags(html.parser.HTMLParser):
    """Which tags there are, whether each is closed, and the text."""

    def __init__(self, markup: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


ALLOWED = {"table", "thead", "tbody", "tr", "th", "td", "p", "pre", "strong", "span"}


@pytest.fixture(scope="module")
def objects():
    examination = examined()
    operator = MatrixOperator(torch.diag(torch.arange(1.0, 30.0, dtype=torch.float64)))
    return {
        "examination": examination,
        "finding": examination.findings[0],
        "conditioning": examination.measurements.figures["hessian"],
        "estimate": examination.measurements.edge.ratio,
        "forecast": examination.measurements.forecast,
        "eigenvalues": wc.eigenvalues(operator, k=2),
        "density": wc.spectral_density(operator, scale="log"),
        "layers": examination.measurements.layers,
        "history": followed()[-1].history,
        "comparison": wc.compare(examination, examined(quick=True)),
    }


def test_representations_are_tables_of_the_figures(objects):
    shown = {name: Tags(x._repr_html_()) for name, x in objects.items()}
    for name, tags in shown.items():
        assert tags.seen <= ALLOWED, name
    c = objects["conditioning"]
    assert c.largest.with_error() in shown["conditioning"].text
    assert str(c.kappa(0.9)) in shown["conditioning"].text
    assert all(f.title in shown["examination"].text for f in objects["examination"].findings)
    assert objects["finding"].title in shown["finding"].text
    assert all(layer.name in shown["layers"].text for layer in objects["layers"])
    assert all(name in shown["forecast"].text for name in objects["forecast"].curves)
    assert "29" in shown["eigenvalues"].text
    assert all(text in shown["history"].text for text in objects["history"].latest().values())
    assert str(objects["estimate"]) in shown["estimate"].text


def test_what_came_from_the_user_stays_text():
    examination = hostile()
    e = examination.measurements.figures["hessian"].largest
    told = wc.results.Finding(
        "x", wc.results.Severity.SEVERE, INJECTION, INJECTION, {INJECTION: e}, INJECTION, Effect(INJECTION, e, e)
    )
    spoken = wc.results.Estimate(1.0, 1.0, 1.0, '"><script>alert(1)</script>')
    for x in (examination, examination.measurements.layers, told, spoken, wc.compare(examination, examination)):
        assert Tags(x._repr_html_()).seen <= ALLOWED


def test_of_equal_findings_the_one_whose_remedy_helped_most_comes_first():
    def finding(without: float, with_remedy: float, error: float = 0.0) -> wc.results.Finding:
        figures = (wc.results.Estimate(x, x - error, x + error, "trial") for x in (without, with_remedy))
        return wc.results.Finding("x", wc.results.Severity.NOTICE, "", "", effect=Effect("loss", *figures))

    assert finding(4, 1).gain == 4
    assert finding(4, 0).gain == float("inf")
    assert finding(1, 4).gain == 0
    assert finding(4, 3, error=1).gain == 0  # overlapping
    assert wc.results.Finding("x", wc.results.Severity.SEVERE, "", "").gain == 0


@pytest.mark.parametrize(
    "which", ["spectrum", "layers", "forecast", "rates", "rates by parameter", "decay", "row norms"]
)
def test_every_chart_is_drawn_on_axes_that_say_what_they_show(which, tmp_path):
    examination = examined(optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=0.1))
    ax = examination.plot(which)
    assert ax.get_xlabel() or which == "layers"
    assert ax.get_ylabel() or which == "layers"
    assert ax.has_data()
    figure, given = matplotlib.pyplot.subplots()
    assert examination.plot(which, given) is given
    figure.savefig(tmp_path / "chart.pdf")
    matplotlib.pyplot.close("all")


def test_the_plotted_figures_are_those_measured():
    examination = examined()
    m = examination.measurements
    ax = examination.plot()
    bound = ax.lines[-1].get_xdata()[0]
    assert bound == pytest.approx(m.edge.bound / m.edge.rate)
    # At the bound the edge ratio would be one: λ_max over it is the ratio.
    assert m.figures["hessian_preconditioned"].largest.value / bound == pytest.approx(m.edge.ratio.value)
    counts = ax.lines[1].get_ydata()
    positive = int((m.figures["hessian_preconditioned"].spectrum > 0).sum())
    assert counts.max() <= positive
    map_ = examination.plot("layers")
    shown = map_.images[0].get_array()
    assert 10 ** float(shown[0, 0]) == pytest.approx(m.layers[0].kappa.value)
    assert 10 ** float(shown[1, 3]) == pytest.approx(m.layers[1].standardized.value)
    rates = examination.plot("rates")
    assert sum(bar.get_height() for bar in rates.patches) == m.parameters
    matplotlib.pyplot.close("all")


def test_a_chart_without_data_is_refused():
    examination = wc.examine(nn.Linear(3, 1), nn.MSELoss(), (torch.randn(9, 3), torch.randn(9, 1)))
    with pytest.raises(ValueError, match="no data for 'rates'"):
        examination.plot("rates")
    with pytest.raises(ValueError, match="there are spectrum, layers"):
        examination.plot("pie")


def test_an_examination_is_a_line_for_what_was_measured_and_one_for_each_finding():
    examination = examined()
    first, *lines = repr(examination).splitlines()
    assert f"{examination.measurements.parameters:,} parameters" in first
    assert [line.split()[:2] for line in lines] == [[f.severity.word, f"{f.key}:"] for f in examination.findings]
    assert all(f.title in line for f, line in zip(examination.findings, lines, strict=True))
