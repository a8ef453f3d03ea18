"""Planted faults are found, healthy runs stay quiet (tests/corpus.py)."""

from __future__ import annotations

import pytest

import wellcond as wc
from tests.corpus import FAULTY, HEALTHY


@pytest.mark.parametrize("case", FAULTY, ids=lambda case: case.name)
def test_a_planted_fault_is_found(case):
    examination = case.examined()
    assert case.found(examination), [(f.key, f.severity.word) for f in examination.findings]


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_a_healthy_run_is_quiet(case):
    examination = case.examined()
    assert examination.severity < wc.Severity.SEVERE, examination.findings[0].title
    assert sum(f.severity > wc.Severity.GOOD for f in examination.findings) <= 1


def test_the_corpus_is_what_it_says():
    assert len(HEALTHY) == len(FAULTY) == 20
    assert len({case.recipe.data for case in HEALTHY}) == 5
    assert len({case.recipe.network for case in HEALTHY}) == 4
    assert len({case.name for case in HEALTHY + FAULTY}) == 40
    assert all(case.faults for case in FAULTY)
    assert not any(case.faults for case in HEALTHY)
