"""The page in a real browser: every chart drawn, nothing too wide, no error, no request, nothing of the user's run."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

import wellcond as wc
from tests.browser import Page
from tests.problems import train
from tests.test_monitor import followed
from tests.test_report import EXAMINATIONS, INJECTION, examined, hostile
from wellcond.monitor.record import FindingChange
from wellcond.trials import Effect

pytestmark = pytest.mark.browser

MARKS = """[...document.querySelectorAll(".chart")].map((chart) => ({
  key: chart.id,
  drawn: [...chart.querySelectorAll(".point, .points path, .lines path, .js-line, .heatmaplayer image, canvas")].filter(
   (mark) => { const box = mark.getBoundingClientRect(); return box.width + box.height > 0; }).length,
  inside: chart.getBoundingClientRect().right <= innerWidth,
}))"""

UNBROKEN = r"""(code) => new Set([...code.getClientRects()].map((box) => Math.round(box.top))).size
    <= code.textContent.trimEnd().split('\n').length"""
"""Python's lines stay whole, since their indentation counts."""

WIDER = """[...document.querySelectorAll("body *")].filter((e) => !e.closest("svg, .scroll, pre, script, .skip")
  && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"""


def deep(layers: int, name: str = "block_{}") -> wc.results.Examination:
    """A network of many layers, quickly examined."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for i in range(layers):
        model.add_module(name.format(i), nn.Linear(4, 4))
        model.add_module(f"tanh{i}", nn.Tanh())
    optimizer, X = torch.optim.Adam(model.parameters(), weight_decay=1e-2), torch.randn(30, 4)
    nn.MSELoss()(model(X), X).backward()
    optimizer.step()
    return wc.examine(model, nn.MSELoss(), (X, X), optimizer, quick=True)


def monitored() -> wc.Monitor:
    """Every chart, findings that came and went, a jump and a failure."""
    case, optimizer, monitor = followed(optimizer=torch.optim.Adam, every=1, steps=1)
    for loss in (1.0, 2.0, 30.0, 1.0):
        monitor.observe(loss)
        train(case, optimizer, 1)
    step = monitor.step
    title = "A finding of several words: its figure is 1,234 (1,200 to 1,300)."
    for i, (now, before) in enumerate([("notice", None), ("severe", "notice"), (None, "severe"), ("severe", None)]):
        change = FindingChange("planted", now, before, title)
        record = dataclasses.replace(monitor.history[-1], step=step + i + 1, changes=[change], jumps=[step + i])
        monitor.history.records.append(record)
    failed = wc.results.Record(
        step + 5, 1.0, "every", failed="out of memory: tried to allocate 3 GiB", notes=["A note."]
    )
    monitor.history.records.append(failed)
    return monitor


def long_run() -> wc.Monitor:
    """Many thousand measurements."""
    _, _, monitor = followed(every=1, steps=1)
    first = monitor.history[0]
    monitor.history.records += [dataclasses.replace(first, step=100_000 * i, changes=[]) for i in range(1, 5_000)]
    return monitor


CASES = {
    **EXAMINATIONS,
    "monitor": monitored,
    "monitor, not measured": lambda: followed(every=10**6, overhead=1e-4, steps=2)[-1],
    "monitor, one measurement": lambda: followed(every=10**6, steps=1)[-1],
    "monitor, long": long_run,
    "200 layers": lambda: deep(200),
    "one layer": lambda: deep(1),
    "very long names": lambda: deep(3, "a_module_with_a_name_that_goes_on_and_on_" * 6 + "{}"),
    "weight decay": lambda: examined(optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=0.1)),
    "no curvature": lambda: wc.examine(nn.Linear(2, 1), loss=lambda m, b: m(b).mean(), data=[torch.randn(9, 2)]),
}


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")

    @functools.cache
    def path(name: str) -> Path:
        return CASES[name]().save(folder / f"{name}.html")

    return path


@pytest.mark.parametrize("width", [1440, 360])
@pytest.mark.parametrize("name", CASES)
def test_every_chart_is_drawn_and_nothing_is_wider_than_the_screen(name, width, page_of):
    path = page_of(name)
    with Page(path, width, dark=width == 360) as page:
        charts = page.run(MARKS)
        assert all(c["drawn"] > 0 and c["inside"] for c in charts), charts
        assert len(charts) == path.read_text(encoding="utf-8").count('class="chart"')
        assert page.run("[...document.querySelectorAll('details')].forEach((d) => { d.open = true; })") is None
        assert page.run(WIDER) == []
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run(f"[...document.querySelectorAll('pre code')].every({UNBROKEN})")
        assert page.run("document.images.length") == 0
        assert page.console == []
        assert page.requests == []


@pytest.mark.parametrize("name", ["monitor", "weight decay"])
def test_a_chart_that_is_drawn_again_keeps_its_axes(name, page_of):
    """As when the theme changes, the page is printed or the window gets another height."""
    labels = "[...chart.querySelectorAll('.xtick, .ytick')].map((tick) => tick.textContent)"
    ticks = f"[...document.querySelectorAll('.chart')].map((chart) => {labels})"
    with Page(page_of(name)) as page:
        before = page.run(ticks)
        page.run("dispatchEvent(new Event('resize'))")
        page.run("new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn, 200)))")
        assert page.run(ticks) == before


def test_a_hostile_name_stays_text_wherever_it_is_shown(tmp_path):
    """Layer, class, parameter; optimizer, group; messages, remedies and evidence of findings; notes."""
    examination = hostile()
    m = examination.measurements
    m.notes.append(INJECTION)
    optimizer = wc.examination.measurements.OptimizerFacts(INJECTION, [])
    planted = examined().measurements
    planted.layers, planted.optimizer = m.layers, optimizer
    planted.step_sizes.learning_rate.parameters[0] = wc.examination.step_sizes.Distribution(
        INJECTION, *list(vars(planted.step_sizes.learning_rate.parameters[0]).values())[1:]
    )
    planted.notes, planted.model, planted.unreached = [INJECTION], INJECTION, [INJECTION]
    figure = m.figures["hessian"].largest
    effect = Effect(INJECTION, figure, figure)
    told = [
        wc.results.Finding(
            INJECTION, wc.results.Severity.SEVERE, INJECTION, INJECTION, {INJECTION: figure}, INJECTION, effect
        )
    ] * 5
    for i, shown in enumerate(
        (wc.results.Examination(m, told), wc.results.Examination(planted, told), hostile_monitor())
    ):
        with Page(shown.save(tmp_path / f"{i}.html")) as page:
            assert page.run("document.images.length + document.querySelectorAll('b, a:not(.skip)').length") == 0
            assert page.run("document.title").startswith("wellcond: ")
            assert "onerror=alert(1)" in page.run("document.body.innerText")
            assert all(c["drawn"] for c in page.run(MARKS))
            assert page.console == []
            assert page.requests == []


def hostile_monitor() -> wc.Monitor:
    """Whose model, optimizer, findings, failures and notes are an attacker's words."""
    monitor = monitored()
    monitor.history.run |= {"model": INJECTION, "optimizer": INJECTION, "torch": INJECTION}
    told = [FindingChange(INJECTION + word, word, None, INJECTION) for word in ("severe", "good")]
    monitor.history.records.append(
        wc.results.Record(99, 1.0, INJECTION, failed=INJECTION, notes=[INJECTION], changes=told, jumps=[98])
    )
    return monitor


@pytest.mark.parametrize("name", ["whole", "monitor"])
def test_it_can_be_used_by_keyboard_and_by_a_screen_reader(name, page_of):
    with Page(page_of(name), 1440) as page:
        page.press("Tab")
        assert page.run("document.activeElement.className") == "skip"
        assert page.run("document.activeElement.getBoundingClientRect().top >= 0")
        page.press("Enter")
        assert page.run("document.activeElement.id") == "main"
        # Every element that takes the focus shows it, in the order of the page.
        seen = []
        for _ in range(60):
            page.press("Tab")
            place = page.run("document.activeElement === document.body ? null : document.activeElement.outerHTML")
            if place is None:
                break
            seen.append(place)
            assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none", place[:80]
        assert len([s for s in seen if s.startswith("<summary")]) == page.run(
            "document.querySelectorAll('summary').length"
        )
        assert page.run("document.querySelectorAll('header, main, footer').length") == 3
        levels = page.run("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
        # Each chart has a name, a description and the same as a table.
        assert page.run("""[...document.querySelectorAll('.chart')].every((c) => c.getAttribute('aria-label')
          && document.getElementById(c.getAttribute('aria-describedby')).textContent.length > 40
          && c.closest('figure').querySelectorAll('details table tbody tr').length > 0)""")
        assert page.run("document.documentElement.lang") == "en"
        assert page.run("new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size") == page.run(
            "document.querySelectorAll('[id]').length"
        )


@pytest.mark.parametrize("theme", ["light", "dark", "paper"])
@pytest.mark.parametrize("name", ["whole", "monitor"])
def test_text_stands_out_in_every_theme(name, theme, page_of):
    """WCAG AA: a contrast of 4.5 between a text and what is behind it."""
    contrast = """(() => {
      const parsed = (c) => c.match(/[\\d.]+/g).map(Number);
      const light = (c) => { const [r, g, b] = parsed(c).slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92
        : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (parsed(c)[3] !== 0) return c; } return "rgb(255, 255, 255)"; };
      return [...document.querySelectorAll("p, h1, h2, h3, dt, dd, td, th, code, summary, .label")].map((e) => {
        const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
        return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 60)]; }).sort((x, y) => x[0] - y[0])[0]; })()"""
    with Page(page_of(name), dark=theme == "dark", paper=theme == "paper") as page:
        least, where = page.run(contrast)
        assert least >= 4.5, where


@pytest.mark.parametrize("name", ["whole", "monitor"])
def test_it_prints_in_light_colors_with_every_finding_open(name, page_of):
    with Page(page_of(name), dark=True) as page:
        page.run("dispatchEvent(new Event('beforeprint'))")
        page.send("Emulation.setEmulatedMedia", media="print", features=[])
        assert page.run("document.querySelectorAll('details.prints:not([open])').length") == 0
        ink = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"
        page.until(f"{ink} === 'rgb(28, 36, 48)'")
        assert all(c["drawn"] for c in page.run(MARKS))
        assert len(page.send("Page.printToPDF")["data"]) > 50_000
        page.run("dispatchEvent(new Event('afterprint'))")
        assert page.run("document.querySelectorAll('details.prints[open]').length") == 0
        assert page.console == []


def test_the_page_of_a_monitor_has_every_chart_and_draws_every_series(page_of):
    with Page(page_of("monitor")) as page:
        keys = page.run("[...document.querySelectorAll('.chart')].map((c) => c.id)")
        assert keys == ["chart-edge", "chart-curvature", "chart-kappa", "chart-loss", "chart-rate"]
        drawn = page.run("[...document.querySelectorAll('.chart')].map((c) => c.querySelectorAll('.trace').length)")
        traces = "JSON.parse(document.getElementById('charts').textContent).map((c) => c.figure.data.length)"
        assert drawn == page.run(traces)
