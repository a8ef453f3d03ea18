"""The page in a real browser: every chart drawn, no error in the console, no request to the network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import wellcond as wc
from tests.test_monitor import followed
from tests.test_report import INJECTION, examined, hostile

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Runs in the page after it is drawn; what it finds is left in the document's title.
LOOK = """
<script>
window.addEventListener("load", () => setTimeout(() => {
  const charts = [...document.querySelectorAll(".chart")];
  const points = (c) => c.querySelectorAll(".point, .points path, .lines path, .js-line, canvas").length;
  document.title = "LOOK" + JSON.stringify({
    charts: charts.length,
    drawn: charts.filter((c) => c.querySelector("svg.main-svg") && points(c)).length,
    width: window.innerWidth,
    content: document.documentElement.scrollWidth,
    injected: document.images.length,
  });
}, 1500));
</script>
"""


def look(page: Path, width: int, tmp_path: Path) -> tuple[dict, str, list[str]]:
    """What the page holds, the console's output, and the addresses it asked for."""
    assert CHROMIUM, "no Chromium on this machine (Debian: apt-get install chromium)"
    inner = tmp_path / "inner.html"
    inner.write_text(page.read_text(encoding="utf-8").replace("</body>", LOOK + "</body>"), encoding="utf-8")
    log = tmp_path / f"net-{width}.json"
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    result = subprocess.run(
        [
            CHROMIUM,
            *flags.split(),
            "--disable-component-update",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / f'profile-{width}'}",
            f"--window-size={width},2000",
            f"--log-net-log={log}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            inner.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<title>LOOK(\{.*?\})</title>", result.stdout)
    assert found, result.stdout[:500]
    # Chromium asks its own servers for updates; what a page asks for has an origin as its initiator.
    events = [e["params"] for e in json.loads(log.read_text())["events"] if "initiator" in e.get("params", {})]
    requested = [e["url"] for e in events if e["initiator"] != "not an origin" and not e["url"].startswith("file:")]
    console = "\n".join(line for line in result.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(found.group(1)), console, requested


@pytest.mark.parametrize("width", [1440, 500])
@pytest.mark.parametrize("quick", [False, True])
def test_the_page_is_drawn_whole(width, quick, tmp_path):
    page = examined(quick=quick).save(tmp_path / "report.html")
    seen, console, requested = look(page, width, tmp_path)
    assert seen["charts"] == seen["drawn"] == 4
    assert seen["content"] <= seen["width"]
    assert console == ""
    assert requested == []


def test_a_hostile_name_stays_text(tmp_path):
    seen, console, requested = look(hostile().save(tmp_path / "report.html"), 1440, tmp_path)
    assert seen["injected"] == 0
    assert seen["drawn"] == seen["charts"]
    assert console == ""
    assert requested == []


@pytest.mark.parametrize("width", [1440, 500])
def test_the_page_of_a_monitor_is_drawn_whole(width, tmp_path):
    _, optimizer, monitor = followed(every=1, steps=1)
    for _ in range(5):
        monitor.observe(1.0)
        optimizer.step()
    monitor.history.run["model"] = INJECTION
    evil = wc.monitor.Change(INJECTION, "severe", None, INJECTION)
    monitor.history.records.append(wc.Record(9, 1.0, "jump", failed=INJECTION, notes=[INJECTION], changes=[evil]))
    seen, console, requested = look(monitor.save(tmp_path / "monitor.html"), width, tmp_path)
    assert seen["charts"] == seen["drawn"] == 5
    assert seen["content"] <= seen["width"]
    assert seen["injected"] == 0
    assert console == ""
    assert requested == []
