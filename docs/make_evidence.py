"""docs/evidence.md from a run of the claims: tables between its markers, pictures beside it. Discussions stay.

python docs/make_evidence.py FOLDER    (what `wellcond evidence --output FOLDER --json FOLDER/evidence.json` wrote)
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from wellcond.evidence import CLAIMS, Evidence, Result, read_evidence

HERE = Path(__file__).parent
PAGE, IMAGES = HERE / "evidence.md", HERE / "images" / "evidence"
LARGEST = 60_000
"""Bytes of a picture."""


def main(folder: Path) -> None:
    """Write the page and its pictures.

    Raises:
        ValueError: for a quick run, a claim that was not measured, or a picture that is too large.
    """
    evidence = read_evidence(folder / "evidence.json", CLAIMS)
    if evidence.quick:
        raise ValueError("the page is made from a full run, this one is quick")
    if missing := [r.claim.name for r in evidence.results if r.failures]:
        raise ValueError(f"{', '.join(missing)} could not be measured")
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Evidence\n"
    text = _section(text, "summary", summary(evidence))
    IMAGES.mkdir(parents=True, exist_ok=True)
    for result in evidence.results:
        text = _section(text, result.claim.name, told(result), heading=f"## {result.claim.name}")
        picture = folder / f"{result.claim.name}.svg"
        if picture.stat().st_size > LARGEST:
            raise ValueError(f"{picture.name} has {picture.stat().st_size:,} bytes, more than {LARGEST:,}")
        shutil.copy(picture, IMAGES)
    PAGE.write_text(text, encoding="utf-8")


def summary(evidence: Evidence) -> str:
    """Machine, versions, date, and a line a claim."""
    lines = [f"**{evidence.headline()}.** {'; '.join(evidence.about.values())}.", ""]
    lines += ["| claim | section | cases in which the rule holds | verdict |", "|---|---|---:|---|"]
    for r in evidence.results:
        held = r.held()
        name = r.claim.name
        lines.append(f"| [{name}](#{name}) | {r.claim.source} | {sum(held)} of {len(held)} | {r.verdict} |")
    return "\n".join(lines)


def told(result: Result) -> str:
    """Hypothesis, rule, the table of its cases, the picture."""
    claim = result.claim
    lines = [f"**{result.verdict.capitalize()}.** {claim.hypothesis} ({claim.source})", "", f"Rule: {claim.rule}.", ""]
    lines += [_row("case", *claim.shown.values(), "rule"), "|---|" + "---:|" * len(claim.shown) + "---|"]
    for runs, held in zip(result.runs, result.held(), strict=True):
        lines.append(_row(runs.case, *result.cells(runs), "holds" if held else "does not hold"))
    return "\n".join(
        [*lines, "", f"![{claim.name}: the figures of the table, drawn](images/evidence/{claim.name}.svg)"]
    )


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _section(text: str, name: str, body: str, heading: str = "") -> str:
    """The text with the body between the markers of a name, which are added at the end where there are none."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in text:
        text = text.rstrip() + "\n\n" + "\n".join(filter(None, [heading, start, end])) + "\n"
    return re.sub(f"(?s){re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}\n{body}\n{end}", text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
