"""What docs and code cite is there: sections of docs/theory.md, local links, the key of every finding."""

import re
from pathlib import Path

import pytest

from wellcond.examination.findings import NAMES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
FILES = [f for d in ("src", "docs", "tests", "benchmarks", "examples") for f in (ROOT / d).rglob("*.*")]
TEXT = {f: f.read_text("utf-8") for f in [*ROOT.glob("*.md"), *FILES] if f.suffix in (".py", ".md", ".html")}
CITED = re.compile(r"\btheory[\s,#]+(?:sections?[\s#]+)?(\d[\d.]*(?:(?:,?\s+and|,)[\s#]+\d[\d.]*)*)", re.IGNORECASE)


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```|\]\([^)]*\)", "", TEXT.get(page, ""), flags=re.DOTALL)
    slugs = (re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {*slugs, *re.findall(r'id="([^"]+)"', text), ""}


def test_every_section_that_is_cited_exists():
    cited = {n for text in TEXT.values() for s in CITED.findall(text) for n in re.findall(r"\d+(?:\.\d+)?", s)}
    assert {"2.3", "5.4"} < cited
    assert {f"s{n}" for n in cited} <= anchors(ROOT / "docs" / "theory.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", TEXT[page], flags=re.DOTALL)
    links = [(a or b).partition("#") for a, b in re.findall(r'\]\(([^)\s]+)|(?:src|href)="([^"]+)"', text)]
    pages = [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in links if ":" not in path]
    assert [(p.name, a) for p, a in pages if not p.exists() or a not in anchors(p)] == []


def test_the_keys_of_all_findings_are_in_their_table():
    findings = "".join(text for f, text in TEXT.items() if "findings" in f.parts)
    table = TEXT[ROOT / "docs" / "findings.md"].split("\n## ")[1]
    assert {*NAMES, *re.findall(r'Finding\(\s*"(\w+)"', findings)} == {*re.findall(r"(?m)^\| `(\w+)` \|", table)}
