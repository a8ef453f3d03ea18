"""Do findings see what is wrong, and keep quiet where nothing is?

The 40 runs of tests/corpus.py: what an examination says of each, at least “notice”. With --write-docs the table goes
into docs/findings.md.

    python -m benchmarks.false_alarms [--write-docs]
"""

import argparse
from pathlib import Path

from benchmarks.tables import Table, write_section
from tests.corpus import BY_NAME, FAULTY, HEALTHY, judge

import wellcond as wc

PAGE = Path(__file__).parent.parent / "docs" / "findings.md"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write-docs", action="store_true", help="put the table into docs/findings.md")
    write = arguments.parse_args().write_docs
    table = Table("run", "to be found", "said")
    found = severe = notices = 0
    for judged in judge(BY_NAME):
        case, said = judged.case, judged.said
        told = ", ".join(f"{key} ({severity.word})" for key, severity in said.items())
        table.add(case.name, " or ".join(case.faults) or "–", told or "–")
        found += judged.found
        if not case.faults:
            severe, notices = severe + (wc.results.Severity.SEVERE in said.values()), notices + bool(said)
    verdict = (
        f"{found} of {len(FAULTY)} planted faults are found; of {len(HEALTHY)} healthy runs {severe} have a severe "
        f"finding and {notices} a notice."
    )
    print(verdict, table, sep="\n\n")
    if write:
        write_section("corpus", verdict, table, page=PAGE)


if __name__ == "__main__":
    main()
