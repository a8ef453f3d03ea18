"""The evidence: runs of claims, their verdicts, the table, the page, the file."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import wellcond as wc
from wellcond.cli import app
from wellcond.evidence import (
    CLAIMS,
    WORKLOADS,
    Claim,
    Evidence,
    Runs,
    Verdict,
    pages,
    print_table,
    read_evidence,
    run_claims,
    workload,
)
from wellcond.evidence.claims import rate
from wellcond.evidence.claims.block_bound import in_unit_range, with_activation
from wellcond.evidence.claims.edge import with_loss
from wellcond.evidence.plots import row_a_case
from wellcond.evidence.result import plus_minus
from wellcond.evidence.run import SEEDS


class Sums(Claim):
    """Sums of <random> numbers & seeds are what they are."""

    name = "sums"
    source = "theory 0"
    cases = ("0", "10")
    shown = {"sum": "sum of random numbers"}

    def holds(self, runs: Runs) -> bool:
        """The sum is over the
        case's number.
        """
        return bool((runs["sum"] > float(runs.case)).all())

    def measure(self, case: str, seed: int, quick: bool) -> dict[str, Any]:
        numbers = torch.rand(10)
        return {"sum": float(numbers.sum()), "numbers": numbers.tolist(), "seed": seed, "quick": float(quick)}

    def plot(self, results: Sequence[Runs], ax: Any) -> None:
        for runs in results:
            ax.plot(runs["numbers"][0], label=runs.case)
        ax.set(xlabel="draw", ylabel="number")


class Fails(Sums):
    """A claim whose runs fail with one seed."""

    name = "fails"

    def measure(self, case: str, seed: int, quick: bool) -> dict[str, Any]:
        if seed == 1 and case == "10":
            raise ValueError("no\nsuch thing")
        return super().measure(case, seed, quick)


class Wide(Sums):
    """A claim that shows many figures of cases with long names."""

    name = "wide"
    cases = ("a convolution: an optimizer, batches of 32", "characters, transformer: another")
    shown = {"sum": "sum of random numbers"} | {f"sum {i}": f"the sum of the numbers, again: {i}" for i in range(11)}

    def measure(self, case: str, seed: int, quick: bool) -> dict[str, Any]:
        figures = super().measure(case, seed, quick)
        return figures | dict.fromkeys(self.shown, 1e5 * figures["sum"])

    def holds(self, runs: Runs) -> bool:
        return False


class TestRuns:
    def test_each_case_has_a_run_a_seed_and_the_rule_decides(self) -> None:
        (result,) = run_claims([Sums()], jobs=1).results
        assert [len(runs.figures) for runs in result.runs] == [5, 5]
        assert result.held() == [True, False]
        assert result.verdict is Verdict.MIXED
        assert list(result.runs[0]["seed"]) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("cases", "verdict"), [(("0", "1"), Verdict.SUPPORTED), (("10", "11"), Verdict.NOT_SUPPORTED)]
    )
    def test_verdicts(self, cases: tuple[str, str], verdict: Verdict) -> None:
        claim = type("Other", (Sums,), {"cases": cases})()
        assert run_claims([claim], quick=True, jobs=1).results[0].verdict is verdict

    def test_quick_has_two_seeds(self) -> None:
        (result,) = run_claims([Sums()], quick=True, jobs=1).results
        assert result.runs[0]["quick"].tolist() == [1, 1]

    def test_random_state_is_the_seeds_whatever_ran_before(self) -> None:
        torch.manual_seed(5)
        a = run_claims([Sums()], jobs=1)
        b = run_claims([Fails(), Sums()], jobs=1)
        assert a.results[0].runs[0]["sum"].tolist() == b.results[1].runs[0]["sum"].tolist()

    def test_processes_give_the_same_as_one(self) -> None:
        claim = [c for c in CLAIMS if c.name == "rate"]
        one, two = (run_claims(claim, quick=True, jobs=jobs).to_json()["claims"] for jobs in (1, 2))
        assert one == two

    def test_threads_and_progress(self) -> None:
        before, seen = torch.get_num_threads(), []
        run_claims([Sums()], quick=True, jobs=1, progress=lambda *what: seen.append(what))
        assert torch.get_num_threads() == before
        assert seen == [("sums", i, 4) for i in (1, 2, 3, 4)]

    def test_a_run_that_fails_is_told_and_loses_no_other(self) -> None:
        evidence = run_claims([Fails(), Sums()], quick=True, jobs=1)
        failed, other = evidence.results
        assert failed.verdict is Verdict.NOT_MEASURED
        assert failed.failures == ["10, seed 1: ValueError: no"]
        assert [len(runs.figures) for runs in failed.runs] == [2, 1]
        assert other.verdict is Verdict.MIXED
        console = Console(record=True, width=100)
        print_table(evidence, console)
        assert "seed 1: ValueError: no" in console.export_text()
        assert "ValueError: no" in pages(evidence)["evidence.html"]


class TestFiles:
    def test_reads_back(self, tmp_path: Any) -> None:
        evidence = run_claims([Fails(), Sums()], quick=True, jobs=1)
        file = tmp_path / "e.json"
        file.write_text(json.dumps(evidence.to_json(), allow_nan=False))
        again = read_evidence(file, [Sums(), Fails()])
        assert again.to_json() == evidence.to_json()
        assert pages(again).keys() == {"evidence.html", "fails.svg", "sums.svg"}

    def test_infinity_and_nan(self, tmp_path: Any) -> None:
        from wellcond.evidence import Result

        runs = Runs("0", [{"sum": math.inf, "numbers": [math.nan, 1.0]}])
        evidence = Evidence([Result(Sums(), [runs])], quick=False)
        file = tmp_path / "e.json"
        file.write_text(json.dumps(evidence.to_json(), allow_nan=False))
        again = read_evidence(file, [Sums()])
        assert again.to_json() == evidence.to_json()
        back = again.results[0].runs[0]
        assert math.isinf(back["sum"][0])
        assert math.isnan(back["numbers"][0, 0])

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "claims": 3}', "\x00\xff", '{"format": 99}'])
    def test_other_files(self, text: str, tmp_path: Any) -> None:
        file = tmp_path / "e.json"
        file.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"e\.json"):
            read_evidence(file, [Sums()])

    def test_page_escapes_and_pictures_are_xml_and_the_same_again(self) -> None:
        evidence = run_claims([Sums()], quick=True, jobs=1)
        first, second = pages(evidence), pages(evidence)
        assert first["sums.svg"] == second["sums.svg"]
        assert "&lt;random&gt; numbers &amp; seeds" in first["evidence.html"]
        assert xml.etree.ElementTree.fromstring(first["sums.svg"]).tag.endswith("svg")
        assert "currentColor" in first["evidence.html"]
        assert "draw" in first["sums.svg"]

    def test_a_row_a_case(self) -> None:
        from matplotlib.figure import Figure

        ax = Figure().add_subplot()
        runs = [Runs("a", [{"x": 1.0}, {"x": 3.0}]), Runs("b", [{"y": 1.0}]), Runs("c", [{"x": 4.0}, {"x": 4.0}])]
        for errors, spread in ((None, 2**0.5), (2.0, 2.0)):
            row_a_case(ax, runs, "x", lower=0.25, errors=errors)
            drawn = ax.containers[-1]
            assert drawn.lines[0].get_xydata().tolist() == [[2.0, 0.25], [4.0, 2.25]]
            ends = drawn.lines[2][0].get_segments()[0][:, 0]
            assert ends.tolist() == pytest.approx([2 - spread, 2 + spread])
        assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]

    def test_geometric_mean(self) -> None:
        assert Runs("", [{"a": 1.0}, {"a": 100.0}]).geometric_mean("a") == pytest.approx(10)

    def test_plus_minus(self) -> None:
        runs = Runs("", [{"a": 1.0, "b": 100.0, "c": [1, 2.0]}, {"a": 1.1, "b": 300.0, "c": [1, 2.0]}])
        assert [plus_minus(runs, name) for name in "abc"] == ["1.05 ± 0.07", "200 ± 100", "2"]
        assert plus_minus(Runs("", [{"a": math.nan}, {"a": 1.0}]), "a") == "–"


class TestCommand:
    def test_runs_one_claim(self, tmp_path: Any) -> None:
        done = CliRunner().invoke(
            app,
            [
                "evidence",
                "rate",
                "--quick",
                "--jobs",
                "1",
                "--output",
                str(tmp_path / "out"),
                "--json",
                str(tmp_path / "out" / "e.json"),  # in a directory that the command makes
            ],
        )
        assert done.exit_code == 0, done.output
        assert "1 claim: 1 supported" in done.output
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["e.json", "evidence.html", "rate.svg"]
        assert read_evidence(tmp_path / "out" / "e.json", CLAIMS).results[0].verdict is Verdict.SUPPORTED

    def test_lists_claims_with_their_rules(self) -> None:
        done = CliRunner().invoke(app, ["evidence", "--list"])
        assert done.exit_code == 0
        for claim in CLAIMS:
            assert claim.name in done.output
            assert " ".join(claim.rule.split())[:30] in " ".join(done.output.split())

    def test_a_name_that_is_none(self) -> None:
        done = CliRunner().invoke(app, ["evidence", "rates"])
        assert done.exit_code == 2
        assert "there is no claim 'rates'; there are rate" in done.output

    def test_output_that_can_not_be_written(self, tmp_path: Any) -> None:
        (tmp_path / "file").write_text("")
        done = CliRunner().invoke(app, ["evidence", "rate", "--quick", "--output", str(tmp_path / "file")])
        assert done.exit_code == 2
        assert "can't write into" in done.output

    def test_what_is_missing_is_said_before_anything_runs(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else name)
        done = CliRunner().invoke(app, ["evidence", "rate", "--output", str(tmp_path / "out")])
        assert done.exit_code == 2
        assert "pip install 'wellcond[evidence]'" in done.output
        assert not (tmp_path / "out").exists()


class TestClaims:
    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.name)
    def test_says_what_it_holds(self, claim: Claim) -> None:
        assert claim.hypothesis
        assert claim.rule
        assert "theory" in claim.source
        assert claim.shown
        assert len(set(claim.cases)) == len(claim.cases)

    def test_five_seeds_a_case(self) -> None:
        assert SEEDS >= 5

    def test_the_rule_is_what_holds_says_as_part_of_a_sentence(self) -> None:
        assert Sums().rule == "the sum is over the case's number"
        assert run_claims([Sums()], jobs=1, quick=True).to_json()["claims"][0]["rule"] == Sums().rule

    def test_names_are_different(self) -> None:
        assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


class TestWorkloads:
    @pytest.mark.parametrize("name", WORKLOADS)
    def test_trains(self, name: str) -> None:
        work = workload(name, examples=100)
        model = work.model(0)
        losses = work.descend(model, torch.optim.Adam(model.parameters(), lr=1e-2), 40)
        assert losses[-1] < 0.9 * losses[0]
        assert float(work.loss(model).detach()) < losses[-1] * 1.01
        assert all(p.dtype == torch.float64 for p in model.parameters())

    def test_split_is_disjoint_and_standardized_on_the_training_set(self) -> None:
        work = workload("breast cancer, MLP")
        assert work.train[0].mean(0).abs().max() < 1e-12
        rows = {tuple(row) for row in work.train[0].tolist()}
        assert not rows & {tuple(row) for row in work.test[0].tolist()}

    def test_same_seed_same_network(self) -> None:
        work = workload("wine, MLP")
        a, b, c = (nn.utils.parameters_to_vector(work.model(seed).parameters()) for seed in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    def test_value_is_the_loss_or_infinite(self) -> None:
        work = workload("wine, MLP", examples=30)
        model = work.model(0)
        assert work.value(model) == float(work.loss(model).detach())
        assert work.value(model, test=True) == float(work.loss(model, test=True).detach())
        nn.init.constant_(next(model.parameters()), math.nan)
        assert work.value(model) == math.inf

    def test_changed_workloads(self) -> None:
        raw = workload("wine, MLP", standardized=False)
        x = raw.train[0]
        scaled = in_unit_range(raw).train[0]
        assert scaled.max() == 1
        torch.testing.assert_close(scaled * x.max(), x)
        model = raw.model(0)
        names = [type(layer).__name__ for layer in with_activation(model, "tanh")]
        assert names == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
        torch.testing.assert_close(with_activation(model, "ReLU")(x), model(x), rtol=0, atol=0)
        kinds = {
            "wine, MLP, cross entropy": nn.CrossEntropyLoss,
            "wine, MLP, squared error": nn.MSELoss,
            "diabetes, MLP, squared error": nn.MSELoss,
        }
        for name, kind in kinds.items():
            work = with_loss(name, examples=30, seed=0)
            assert isinstance(work.loss_fn, kind)
            assert math.isfinite(work.value(work.model(0)))

    def test_unknown(self) -> None:
        with pytest.raises(ValueError, match="there is no workload 'wines'"):
            workload("wines")


class TestRate:
    def test_contraction_of_a_geometric_sequence(self) -> None:
        assert rate.contraction([0.5**i for i in range(20)]) == pytest.approx(math.log(0.5))

    def test_errors_of_one_parameter(self) -> None:
        # z ← z − lr P²·H z with H = 1, P = 2, lr = 0.1: a factor of 0.6 a step.
        one = torch.ones(1, dtype=torch.float64)
        assert rate.errors(one[:, None], 2 * one, one, lr=0.1, momentum=0.0, steps=3) == pytest.approx([1, 0.6, 0.36])

    def test_a_broken_preconditioner_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sound = wc.DiagonalPreconditioner
        monkeypatch.setattr(wc, "DiagonalPreconditioner", lambda p, d: sound(p, [x.sqrt() for x in d]))
        claim = rate.Rate()
        torch.manual_seed(0)
        assert not claim.holds(Runs("", [claim.measure("random, κ = 100, under P", 0, True)]))


@pytest.mark.browser
@pytest.mark.parametrize("width", [1440, 360])
def test_page_in_a_browser(width: int, tmp_path: Any) -> None:
    from tests.browser import Page
    from tests.test_browser import WIDER

    file = tmp_path / "evidence.html"
    file.write_text(pages(run_claims([Sums(), Fails(), Wide()], quick=True, jobs=1))["evidence.html"], encoding="utf-8")
    with Page(file, width, dark=width == 360) as page:
        assert page.run(WIDER) == []
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        lines = page.run("[...document.querySelectorAll('figure svg')].map((s) => s.querySelectorAll('path').length)")
        assert len(lines) == 3
        assert min(lines) > 5
        assert page.run("document.querySelectorAll('random').length") == 0
        ink = page.run("getComputedStyle(document.body).color")
        assert page.run("getComputedStyle(document.querySelector('figure svg text')).fill") == ink
        # No name is cut into letters.
        assert page.run("[...document.querySelectorAll('th.case')].every((e) => e.offsetWidth >= 140)")
        ids = page.run("[...document.querySelectorAll('body > *:not(script) [id]:not(svg [id])')].map((e) => e.id)")
        assert len(set(ids)) == len(ids)
        assert page.console == []
        assert page.requests == []
