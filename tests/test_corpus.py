"""Planted faults are found, healthy runs stay quiet (tests/corpus.py)."""

from __future__ import annotations

import pytest

import wellcond as wc
from tests.corpus import BY_NAME, FAULTY, HEALTHY, judge


@pytest.fixture(scope="module")
def judged(request):
    """By name, those that tests were chosen for."""
    chosen = [item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")]
    return {j.case.name: j for j in judge(name for name in BY_NAME if name in chosen)}


@pytest.mark.parametrize("name", [case.name for case in FAULTY])
def test_a_planted_fault_is_found(name, judged):
    assert judged[name].found, judged[name].said
    assert not judged[name].lacking


@pytest.mark.parametrize("name", [case.name for case in HEALTHY])
def test_a_healthy_run_is_quiet(name, judged):
    said = judged[name].said
    assert wc.results.Severity.SEVERE not in said.values(), said
    assert len(said) <= 1, said
    assert not judged[name].lacking


def test_the_corpus_is_what_it_says():
    assert len(HEALTHY) == len(FAULTY) == 20
    assert len({case.recipe.data for case in HEALTHY}) == 5
    assert len({case.recipe.network for case in HEALTHY}) == 4
    assert len(BY_NAME) == 40
    assert all(case.faults for case in FAULTY)
    assert not any(case.faults for case in HEALTHY)
