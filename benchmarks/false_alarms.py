"""Do findings see what is wrong, and keep quiet where nothing is?

The 40 runs of tests/corpus.py: what an examination says of each, at least “notice”. With --write-docs the table goes
into docs/findings.md.

    python -m benchmarks.false_alarms [--write-docs]
"""

import argparse
from pathlib import Path

import torch
from benchmarks.tables import Table, write_section
from tests.corpus import FAULTY, HEALTHY, Case

import wellcond as wc

PAGE = Path(__file__).parent.parent / "docs" / "findings.md"


def row(case: Case) -> tuple[str, str, bool, bool]:
    """What was planted, what is said, whether the fault was found, whether anything severe was said."""
    examination = case.examined()
    said = [f"{f.key} ({f.severity.word})" for f in examination.findings if f.severity > wc.Severity.GOOD]
    planted = " or ".join(case.faults) or "–"
    return planted, ", ".join(said) or "–", case.found(examination), examination.severity is wc.Severity.SEVERE


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write-docs", action="store_true", help="put the table into docs/findings.md")
    write = arguments.parse_args().write_docs
    torch.set_num_threads(1)
    table = Table("run", "to be found", "said")
    found = severe = notices = 0
    for case in FAULTY + HEALTHY:
        planted, said, right, alarm = row(case)
        table.add(case.name, planted, said)
        found += right
        if not case.faults:
            severe, notices = severe + alarm, notices + (said != "–")
    verdict = (
        f"{found} of {len(FAULTY)} planted faults are found; of {len(HEALTHY)} healthy runs {severe} have a severe "
        f"finding and {notices} a notice."
    )
    print(verdict, table, sep="\n\n")
    if write:
        write_section("corpus", verdict, table, page=PAGE)


if __name__ == "__main__":
    main()
