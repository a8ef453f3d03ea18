"""A monitor sees what is there, keeps its budget, and training does not notice it."""

from __future__ import annotations

import copy
import dataclasses
import gc
import importlib.util
import json
import math
import random
import signal
import subprocess
import sys
import time
import warnings
import weakref
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc
from tests.monitored import Augmented, adversarial, network, plain_step, same, trained
from tests.problems import batches_of, make, train
from wellcond.examination import Finding, Severity
from wellcond.linalg import Estimate
from wellcond.monitor import finding_changes as changes_module
from wellcond.monitor import losses as losses_module
from wellcond.monitor.budget import MARGIN, Budget
from wellcond.monitor.finding_changes import Findings
from wellcond.monitor.losses import LASTING, LEAST, Losses
from wellcond.monitor.measuring import Look, Looking
from wellcond.monitor.record import FindingChange
from wellcond.problem import draw_batches, generators_of

EVERY_STEP = {"every": 1, "overhead": None, "examples": 16}

BUILD = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
    "SGD, momentum, decay": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
    "Adam, decay": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, weight_decay=1e-2),
    "AdamW, fused": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True),
    "AdamW, groups": lambda m: torch.optim.AdamW(
        [{"params": m[0].parameters()}, {"params": [*m[1].parameters(), *m[4].parameters()], "lr": 1e-3}], lr=0.01
    ),
    "RMSprop, momentum": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.9),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05),
    "Adadelta": lambda m: torch.optim.Adadelta(m.parameters()),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters(), lr=0.01),
    "RAdam": lambda m: torch.optim.RAdam(m.parameters(), lr=0.01),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters(), lr=0.01),
    "in one pass": lambda m: wc.optim.AdamW(m.parameters(), lr=0.01, penalty=wc.penalties.L1(1e-2), model=m),
}


def pair(build, **options):
    """A run without a monitor and the same with one that measures at every step."""
    alone, _ = trained(build, None, **options)
    watched, monitor = trained(build, EVERY_STEP, **options)
    return alone, watched, monitor


@pytest.mark.parametrize("name", BUILD)
def test_training_is_bit_for_bit_the_same(name):
    alone, watched, monitor = pair(BUILD[name])
    assert same(alone, watched)
    assert len(monitor.history) == 10
    assert all(r.failed is None and r.measured_loss > 0 for r in monitor.history)
    assert all((r.edge_ratio is None) == (name == "Rprop") for r in monitor.history)


def test_the_comparison_would_notice():
    alone, _ = trained(BUILD["Adam"], None)
    assert same(alone, trained(BUILD["Adam"], None)[0])
    assert not same(alone, trained(BUILD["Adam"], None, before=lambda model, _: torch.randn(1))[0])
    read = lambda model, _: Augmented()[0]  # noqa: E731  an example read draws from the module's generator
    assert not same(alone, trained(BUILD["Adam"], None, before=read)[0])


ATTACH = {
    "regularize": lambda model, o: wc.regularize(o, wc.penalties.L1(1e-2), model=model),
    "regularize, original": lambda model, o: wc.regularize(o, wc.penalties.L1(1e-2), model=model, space="original"),
    "precondition": lambda model, o: wc.precondition(o, wc.BatchNormPreconditioner(model)),
    "reparameterize": lambda model, o: wc.reparameterize(
        o, wc.DiagonalPreconditioner(list(model.parameters()), [torch.full(p.shape, 2.0) for p in model.parameters()])
    ),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", ATTACH)
def test_what_is_attached_is_respected_in_either_order(name, order):
    alone, watched, monitor = pair(BUILD["SGD" if name == "precondition" else "Adam"], **{order: ATTACH[name]})
    assert same(alone, watched)
    assert all(r.failed is None for r in monitor.history)


def accumulating(model, optimizer, x, y, number):
    optimizer.zero_grad()
    for part in range(2):
        loss = nn.functional.cross_entropy(model(x[4 * part : 4 * part + 4]), y[4 * part : 4 * part + 4]) / 2
        loss.backward()
    optimizer.step()
    return loss


def scaled(model, optimizer, x, y, number, scaler={}):  # noqa: B006  one scaler a run
    if number == 0:
        scaler["it"] = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(x), y)
    scaler["it"].scale(loss).backward()
    if number in (2, 5):
        model[0].weight.grad.fill_(math.inf)  # the scaler leaves this step out
    scaler["it"].step(optimizer)
    scaler["it"].update()
    return loss


def with_closure(model, optimizer, x, y, number):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return optimizer.step(closure)


def clipped(model, optimizer, x, y, number):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    return loss


def all_in_autocast(*arguments):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return plain_step(*arguments)


LOOPS = {
    "clipping": (BUILD["SGD, momentum, decay"], {"step": clipped}),
    "all in autocast": (BUILD["Adam"], {"step": all_in_autocast}),
    "compiled": (BUILD["Adam"], {"prepare": lambda m: m.compile(backend="eager")}),
    "rate as a tensor": (lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.01)), {}),
    "accumulation": (BUILD["Adam"], {"step": accumulating}),
    "scaler": (BUILD["Adam"], {"step": scaled}),
    "closure": (BUILD["AdamW, groups"], {"step": with_closure}),
    "LBFGS": (lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3), {"step": with_closure}),
    "frozen": (BUILD["Adam"], {"prepare": lambda m: m[0].requires_grad_(False)}),
    "eval": (BUILD["Adam"], {"prepare": lambda m: m.eval()}),
    "frozen batch norm": (BUILD["Adam"], {"prepare": lambda m: m[1].eval()}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_other_loops_are_the_same_too(name):
    build, options = LOOPS[name]
    alone, watched, monitor = pair(build, **options)
    assert same(alone, watched)
    assert all(r.failed is None for r in monitor.history)
    assert len(monitor.history) == monitor.step == (8 if name == "scaler" else 10)
    if name == "LBFGS":
        assert "can't be read as a preconditioner" in monitor.history[0].notes[0]
        assert all(r.largest is not None and r.edge_ratio is None for r in monitor.history)
    if name == "frozen":
        assert monitor.history.run["parameters"] == sum(p.numel() for p in network()[1:].parameters())


def test_two_networks_that_train_against_each_other():
    """What the loss of one uses of the other, its batch norm and dropout, is left as it was too."""
    alone, _ = adversarial(monitored=False)
    watched, monitors = adversarial(monitored=True)
    assert same(alone, watched)
    for monitor in monitors:
        assert [r.failed for r in monitor.history] == [None] * 4
        assert all(r.edge_ratio is not None for r in monitor.history)


def test_the_loader_is_iterated_by_training_alone(monkeypatch):
    iterated, iterate = [], DataLoader.__iter__
    monkeypatch.setattr(DataLoader, "__iter__", lambda loader: (iterated.append(loader), iterate(loader))[1])
    _, monitor = trained(BUILD["Adam"], EVERY_STEP, epochs=2)
    assert len(iterated) == 2
    assert len(monitor.history) == 10


def test_the_mode_measured_is_the_mode_trained_in():
    """Eval mode has no dropout and running statistics: the loss on the same batches is another."""
    losses = []
    for prepare in (lambda m: None, lambda m: m.eval()):
        _, monitor = trained(BUILD["SGD"], EVERY_STEP, prepare=prepare, epochs=1)
        losses.append(monitor.history[0].measured_loss)
    assert losses[0] != losses[1]


def followed(name="tanh MLP", optimizer=torch.optim.Adam, lr=1e-2, steps=5, **options):
    """A case of the shared table, trained under a monitor."""
    case = make(name)
    made = optimizer(case.model.parameters(), lr=lr)
    monitor = wc.Monitor(case.model, case.loss_fn, case.data, made, **{"every": 2, "overhead": None, **options})
    train(case, made, steps)
    return case, made, monitor


@pytest.mark.parametrize("name", ["tanh MLP", "batch norm", "dropout", "uneven batches", "linear regression"])
def test_the_figures_are_right(name):
    case, optimizer, monitor = followed(name, examples=100)
    record = monitor.measure()
    batches = monitor._looking.batches
    problem = wc.Problem(case.model, case.loss_fn, batches)
    P, H = wc.preconditioner_of(optimizer), wc.Hessian(problem)
    truth = {
        "largest": torch.linalg.eigvalsh(H.dense())[-1],
        "largest_preconditioned": torch.linalg.eigvalsh(H.preconditioned(P).dense())[-1],
        "edge_ratio": wc.edge_ratio(problem, optimizer, max_products=problem.size).ratio.value,
    }
    G = torch.linalg.eigvalsh(wc.GaussNewton(problem).preconditioned(P).dense())
    truth["kappa_mean"] = G[-1] / G.mean()
    for figure, value in truth.items():
        e = getattr(record, figure)
        assert e.low <= float(value) * (1 + 1e-9), figure
        assert float(value) <= e.high * (1 + 1e-9), figure
    for figure in ("largest", "largest_preconditioned", "edge_ratio"):  # within the tolerance of the run
        assert getattr(record, figure).value == pytest.approx(float(truth[figure]), rel=0.02)
    assert record.measured_loss == pytest.approx(problem.loss())


def test_a_warm_start_takes_fewer_products():
    case, optimizer, monitor = followed("convolution", steps=30, every=1000)
    looking = monitor._looking
    cold = Looking(case.model, case.loss_fn, None, looking.batches, 0)
    cold_products = cold.look(optimizer, ["edge"], True).measurements.products
    cold.look(optimizer, ["edge"], True)
    train(case, optimizer, 1)
    warm = cold.look(optimizer, ["edge"], True).measurements
    assert warm.products < cold_products
    problem = wc.Problem(case.model, case.loss_fn, looking.batches)
    exact = wc.edge_ratio(problem, optimizer, max_products=problem.size).ratio.value
    assert warm.edge.ratio.value == pytest.approx(exact, rel=0.02)


def test_when_it_measures():
    _, optimizer, monitor = followed(every=4, steps=10)
    assert [r.step for r in monitor.history] == [1, 5, 9]
    asked = monitor.measure()
    assert asked is monitor.history[-1]
    assert (asked.step, asked.why) == (10, "request")
    assert [r.why for r in monitor.history] == ["every"] * 3 + ["request"]
    assert monitor.history[0].learning_rate == 1e-2
    monitor.remove()
    monitor.remove()
    optimizer.step()
    assert monitor.step == 10
    assert "removed" in repr(monitor)


def test_a_jump_is_measured_at_once():
    case, optimizer, monitor = followed(every=1000, steps=1)
    for i in range(LEAST + 10):
        monitor.observe(1 + 0.01 * (i % 3) if i < LEAST + 5 else 100.0)
        train(case, optimizer, 1)
    jump = LEAST + 5 + LASTING + 1
    assert [(r.step, r.why, r.jumps) for r in monitor.history] == [(1, "every", []), (jump, "jump", [jump])]
    assert monitor.history[-1].loss == 100.0


# -- the observed loss -----------------------------------------------------------------------------------------------


def jumps_of(values) -> list[int]:
    losses = Losses()
    for step, value in enumerate(values):
        losses.observe(value)
        losses.end_step(step)
    return losses.take_jumps()


def test_jumps_are_found_and_noise_is_none():
    rng = random.Random(0)
    noise = [1 + 0.2 * rng.gauss(0, 1) for _ in range(5000)]
    assert jumps_of(noise) == []
    assert jumps_of([1 / (1 + i) for i in range(500)]) == []  # falling
    assert jumps_of([1 + 1e-3 * i for i in range(500)]) == []  # slowly rising
    one_hard_batch = [*noise[:100], 50.0, *noise[100:200]]
    assert jumps_of(one_hard_batch) == []
    spike = [*noise[:100], 5.0, 6.0, 7.0, 6.0, *noise[100:200]]
    assert jumps_of(spike) == [102]
    assert jumps_of([*noise[:100], *[math.nan] * 50]) == [100]


def test_several_losses_of_a_step_are_averaged_and_nonsense_is_refused():
    losses = Losses()
    for value in (torch.tensor(1.0), 2, 6.0):
        losses.observe(value)
    losses.end_step(1)
    assert losses.latest == 3.0
    losses.end_step(2)
    assert losses.latest == 3.0
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        losses.observe(torch.ones(3))
    with pytest.raises(TypeError, match="scalar tensor or a number"):
        losses.observe("low")


def test_a_loss_on_a_device_is_not_waited_for(monkeypatch):
    class Later:
        here = False

        def __init__(self, loss):
            assert loss.device.type == "meta"

        @property
        def arrived(self):
            return Later.here

        value = 4.0

    monkeypatch.setattr(losses_module, "_OnItsWay", Later)
    losses = Losses()
    for step in range(3):
        losses.observe(torch.empty((), device="meta"))
        losses.end_step(step)
    assert losses.latest is None
    Later.here = True
    losses.end_step(3)
    assert losses.latest == 4.0


# -- the budget --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_the_share_is_kept_at_every_moment(share, seed):
    """A run simulated with parts whose cost varies by up to the margin: after every measurement, and so at every time
    after the first, the share is kept, and not much less than it is used."""
    rng, budget, now = random.Random(seed), Budget(share, {"dear": 0.4}), 0.0
    true = {"cheap": 0.03, "dear": 0.4}
    budget.other = 0.01
    budget.started, measured = 0.0, []
    while now < 300:
        now += 0.005
        costs = {part: budget.expected(part) or 1.5 * cost for part, cost in true.items()}
        chosen = budget.affordable(costs, now)
        for part in chosen:
            took = true[part] * rng.uniform(1, MARGIN)
            now += took
            budget.took(part, took)
        if chosen:
            measured.append(chosen)
            assert budget.taken_share(now) <= share + 1e-9
    assert measured[0] == ["cheap"]
    assert budget.taken_share(now) > 0.7 * share
    assert any("dear" in chosen for chosen in measured)
    assert sum("dear" not in chosen for chosen in measured) > len(measured) / 3


def test_without_a_limit_everything_is_affordable():
    assert Budget(None, {}).affordable({"a": 1.0, "b": 9.0}, 0.0) == ["a", "b"]


def test_the_budget_wins_over_every():
    _, _, monitor = followed(overhead=1e-4, every=1, steps=60)
    assert monitor.step == 60
    assert len(monitor.history) == 0
    monitor.measure()
    assert monitor.share > 1e-4
    assert len(monitor.history) == 1


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_file_reads_back_and_fits_the_schema(tmp_path):
    path = tmp_path / "run.jsonl"
    _, _, monitor = followed(path=path)
    assert not wc.read_history(path).finished
    monitor.remove()
    history = wc.read_history(path)
    assert history.finished
    assert history.records == monitor.history.records
    assert history.run == monitor.history.run
    schema = json.loads(files("wellcond.monitor").joinpath("monitor.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for line in path.read_text().splitlines():
        jsonschema.validate(json.loads(line), schema)


def test_a_killed_run_reads_back_wherever_it_was_torn(tmp_path):
    path, torn = tmp_path / "run.jsonl", tmp_path / "torn.jsonl"
    followed(path=path)
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    expected = wc.read_history(path).records
    for end in [*range(head, len(whole), 97), len(whole) - 1]:
        torn.write_bytes(whole[:end])
        read = wc.read_history(torn)
        complete = whole[:end].count(b"\n") - 1
        assert read.records == expected[: max(complete, len(read))]
        assert complete <= len(read) <= complete + 1
        assert not read.finished


def test_a_process_killed_in_the_middle_of_a_line_leaves_the_lines_before(tmp_path):
    path = tmp_path / "run.jsonl"
    dies = "import sys; from tests.monitored import dies_in_a_line; dies_in_a_line(sys.argv[1])"
    process = subprocess.run([sys.executable, "-c", dies, str(path)], stderr=subprocess.PIPE, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not path.read_bytes().endswith(b"\n")
    history = wc.read_history(path)
    assert [r.step for r in history] == [1, 2, 3]
    assert not history.finished
    assert "Over the steps" in history.save(tmp_path / "monitor.html").read_text(encoding="utf-8")


def test_a_file_whose_first_line_is_torn_is_said_to_be_and_continued(tmp_path):
    path = tmp_path / "run.jsonl"
    followed(path=path)
    first = path.read_bytes().splitlines()[0]
    for end in (5, 40, len(first) - 1):
        path.write_bytes(first[:end])
        with pytest.raises(ValueError, match="holds half a line"):
            wc.read_history(path)
    _, _, second = followed(path=path)
    assert wc.read_history(path).records == second.history.records


def test_a_history_of_an_older_version_is_read_and_shown(tmp_path):
    """Written before findings had a part of the budget of their own."""
    history = wc.read_history(Path(__file__).parent / "data" / "monitor-1.jsonl")
    assert history.finished
    assert [r.step for r in history] == [1, 21, 41]
    assert history.findings()
    assert str(history[-1].edge_ratio) in history.save(tmp_path / "monitor.html").read_text(encoding="utf-8")


def test_a_file_is_continued_after_a_torn_line(tmp_path):
    path = tmp_path / "run.jsonl"
    followed(path=path)
    path.write_bytes(path.read_bytes()[:-30])
    _, _, second = followed(path=path, steps=9)
    assert wc.read_history(path).records == second.history.records


@pytest.mark.parametrize(
    "content",
    [
        "",
        "hello\n",
        '{"kind": "record"}\n',
        "[1]\n",
        "7\n",
        "\x00\xff\n",
        '{"schema": "wellcond.examination/1"}\n',
        '{"kind": "run", "schema": 1, "run": {}}\n',
        "[" * 100_000,
    ],
)
def test_what_is_no_history_is_refused(tmp_path, content):
    path = tmp_path / "other.txt"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"other\.txt is"):
        wc.read_history(path)
    if content:
        with pytest.raises(ValueError, match="not a history"):
            followed(path=path)
        assert path.read_text(encoding="latin-1") == content


def test_another_schema_is_named(tmp_path):
    path = tmp_path / "later.jsonl"
    path.write_text('{"kind": "run", "schema": "wellcond.monitor/9", "run": {}}\n')
    with pytest.raises(ValueError, match=r"wellcond\.monitor/9.*update wellcond"):
        wc.read_history(path)


@pytest.mark.parametrize("where", ["/dev/full", "missing/run.jsonl", "."])
def test_a_path_that_cannot_be_written_is_one_warning(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="can't write") as caught:
        _, _, monitor = followed(path=where)
    monitor.remove()
    assert len(caught) == 1
    assert len(monitor.history) == 3


# -- what goes wrong -------------------------------------------------------------------------------------------------


class Breaks(nn.Module):
    """Can't be measured from its third call on."""

    def __init__(self):
        super().__init__()
        self.inner, self.broken = nn.Linear(3, 1), False

    def forward(self, x):
        if self.broken and torch.is_grad_enabled() and self.inner.weight.is_leaf and not self.inner.weight.grad_fn:
            raise RuntimeError("out of memory: tried to allocate\n 3 GiB")
        return self.inner(x)


def test_a_measurement_that_fails_is_recorded_and_training_goes_on():
    torch.manual_seed(0)
    X, y, model = torch.randn(20, 3), torch.randn(20, 1), Breaks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = wc.Monitor(model, nn.MSELoss(), (X, y), optimizer, every=2, overhead=None)
    for step in range(6):
        model.broken = False
        optimizer.zero_grad()
        nn.MSELoss()(model(X), y).backward()
        model.broken = step in (2, 3)
        optimizer.step()
    assert [r.failed for r in monitor.history] == [None, "out of memory: tried to allocate 3 GiB", None]
    assert "could not be measured, because out of memory" in monitor.history[1].line()
    assert monitor.history[1].edge_ratio is None


def test_a_loss_that_is_not_a_number():
    case, optimizer, monitor = followed(steps=3, every=1)
    with torch.no_grad():
        case.model[0].weight.fill_(math.nan)
    for _ in range(2):
        monitor.observe(torch.tensor(math.nan))
        train(case, optimizer, 1)
    last = monitor.history[-1]
    assert "loss" in last.failed
    assert math.isnan(last.loss)
    assert math.isnan(wc.results.Record.from_json(json.loads(json.dumps(last.to_json(), allow_nan=False))).loss)


def test_a_finding_that_raises_does_not_cost_the_record(monkeypatch):
    def raises(m, subject):
        raise KeyError("no such figure")

    monkeypatch.setattr(changes_module, "FINDINGS", [raises])
    _, _, monitor = followed(steps=1)
    assert monitor.history[0].edge_ratio is not None
    assert monitor.history[0].notes == ["test_monitor could not be looked for: KeyError: 'no such figure'."]


X, Y = torch.randn(20, 3), torch.randn(20, 1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"every": 0}, ValueError, "every=0"),
        ({"every": 2.5}, ValueError, "every=2.5"),
        ({"overhead": 0}, ValueError, "overhead=0"),
        ({"overhead": 1.0}, ValueError, "overhead=1.0"),
        ({"overhead": "little"}, ValueError, "overhead='little'"),
        ({"examples": 0}, ValueError, "examples=0"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"writer": object()}, TypeError, "add_scalar"),
        ({"path": 3}, TypeError, "file name"),
        ({"optimizer": None}, ValueError, "optimizer is missing"),
        ({"optimizer": 3}, TypeError, "optimizer is a int"),
        ({"model": 3}, TypeError, "model is a int"),
        ({"data": None}, ValueError, "data is missing"),
        ({"data": []}, ValueError, "data is empty"),
        ({"data": iter([(X, Y)])}, ValueError, "one-shot generator"),
        ({"loss_fn": None}, ValueError, "either loss_fn"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))])}, ValueError, "not the model's"),
    ],
)
def test_bad_arguments_are_refused_at_the_door(options, error, words):
    model = nn.Linear(3, 1)
    given = {"model": model, "loss_fn": nn.MSELoss(), "data": (X, Y), "optimizer": torch.optim.SGD(model.parameters())}
    given |= options
    with pytest.raises(error, match=words):
        wc.Monitor(given.pop("model"), **given)
    optimizer = given["optimizer"]
    assert not getattr(optimizer, "_optimizer_step_post_hooks", None)


# -- around the optimizer --------------------------------------------------------------------------------------------


def test_the_optimizer_is_as_it_was():
    case = make("tanh MLP")
    optimizer = torch.optim.Adam(case.model.parameters())
    train(case, optimizer, 1)
    before, hooks = copy.deepcopy(optimizer.state_dict()), len(optimizer._optimizer_step_post_hooks)
    with wc.Monitor(case.model, case.loss_fn, case.data, optimizer) as monitor:
        assert same(before, optimizer.state_dict())
        twin = copy.deepcopy(optimizer)
        assert same(before, twin.state_dict())
        assert not twin._optimizer_step_post_hooks
    assert len(optimizer._optimizer_step_post_hooks) == hooks
    assert monitor.history.finished


def test_a_step_that_calls_that_of_its_base_class_counts_once():
    class Own(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    _, _, monitor = followed(optimizer=Own, steps=6)
    assert monitor.step == 6
    assert "Own can't be read" in monitor.history[0].notes[0]


def test_it_does_not_keep_the_network_alive():
    case, optimizer, monitor = followed(steps=2)
    model = weakref.ref(case.model)
    gc.collect()
    gc.disable()
    try:
        del case, optimizer, monitor
        assert model() is None
    finally:
        gc.enable()


def test_measuring_without_the_optimizer_is_refused():
    _, optimizer, monitor = followed(steps=2)
    del optimizer
    gc.collect()
    with pytest.raises(RuntimeError, match="optimizer is gone"):
        monitor.measure()


def test_parameters_that_thaw_are_measured_from_then_on():
    case = make("tanh MLP")
    case.model[0].requires_grad_(False)
    optimizer = torch.optim.Adam(case.model.parameters())
    monitor = wc.Monitor(case.model, case.loss_fn, case.data, optimizer, every=1, overhead=None)
    train(case, optimizer, 2)
    case.model[0].requires_grad_(True)
    train(case, optimizer, 2)
    assert [r.failed for r in monitor.history] == [None] * 4
    n = sum(p.numel() for p in case.model.parameters())
    assert monitor._looking._vectors["hessian", n].numel() == n


# -- the batches it looks at -------------------------------------------------------------------------------------------


def test_batches_are_drawn_from_the_seed():
    x = torch.arange(1000.0)[:, None]
    sorted_by_class = DataLoader(TensorDataset(x, x), batch_size=50)
    drawn = draw_batches(sorted_by_class, pairs=True, examples=None, least=128, seed=0)
    assert [len(a) for a, _ in drawn] == [50, 50, 50]
    values = torch.cat([a for a, _ in drawn]).flatten()
    assert len(values.unique()) == 150
    assert values.max() > 900  # not the first ones
    again = draw_batches(sorted_by_class, pairs=True, examples=None, least=128, seed=0)
    assert same(drawn, again)
    assert not same(drawn, draw_batches(sorted_by_class, pairs=True, examples=None, least=128, seed=1))
    listed = draw_batches([(x[:5], x[:5]), (x[5:9], x[5:9])], pairs=True, examples=6, least=1, seed=0)
    assert sum(len(a) for a, _ in listed) == 9
    ((rows, _),) = draw_batches((x, x), pairs=True, examples=10, least=1, seed=0)
    assert len(rows) == 10
    ((whole, _),) = draw_batches((x, x), pairs=True, examples=None, least=1, seed=0)
    assert len(whole) == 1000


def test_generators_are_found_where_data_sets_keep_them():
    data = Augmented()
    held = generators_of(data)
    assert data.rng in held
    assert len(held) == 2
    own = torch.Generator()
    assert own in generators_of(torch.utils.data.Subset(data, [1]), lambda x: (x, own))


# -- who is told -------------------------------------------------------------------------------------------------------


class Recorder:
    def __init__(self, fails_after=10**9):
        self.calls, self.fails_after = [], fails_after

    def add_scalar(self, tag, value, step):
        if len(self.calls) >= self.fails_after:
            raise OSError("disk full")
        self.calls.append((tag, value, step))


def test_a_writer_gets_every_figure():
    writer = Recorder()
    _, _, monitor = followed(writer=writer)
    last = monitor.history[-1]
    assert ("wellcond/edge_ratio", last.edge_ratio.value, last.step) in writer.calls
    tags = {tag.removeprefix("wellcond/") for tag, *_ in writer.calls}
    assert {"edge_ratio", "largest", "largest_preconditioned", "kappa_mean", "learning_rate"} <= tags
    assert len(writer.calls) == sum(len(r.numbers()) for r in monitor.history)


def test_a_writer_that_fails_is_one_warning():
    with pytest.warns(UserWarning, match="disk full") as caught:
        _, _, monitor = followed(writer=Recorder(fails_after=3))
    assert len(caught) == 1
    assert len(monitor.history) == 3


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_itself(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    followed(writer=writer)
    writer.close()
    assert any(p.stat().st_size > 100 for p in tmp_path.iterdir())


def test_a_line_a_measurement(capsys):
    _, _, monitor = followed(show=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [r.line() for r in monitor.history]
    assert all(line.startswith("step ") and "edge ratio" in line for line in lines)


def test_notes_are_told_once():
    _, _, monitor = followed(optimizer=torch.optim.Rprop, steps=6)
    assert [len(r.notes) for r in monitor.history] == [1, 0, 0]


# -- findings ----------------------------------------------------------------------------------------------------------


def test_findings_are_told_when_they_change(monkeypatch):
    found: dict[str, Severity] = {}
    monkeypatch.setattr(
        changes_module, "FINDINGS", [lambda m, s: next((Finding(k, s, f"{k}!", "") for k, s in found.items()), None)]
    )
    standing = Findings()

    def changes(*parts: str) -> list[FindingChange]:
        return standing.changes(Look(None, None, dict.fromkeys(parts, 0.0)))[0]

    found["scale"] = Severity.NOTICE
    assert changes("edge", "layers") == [FindingChange("scale", "notice", None, "scale!")]
    assert changes("edge", "layers") == []
    found["scale"] = Severity.SEVERE
    assert changes("edge", "layers") == [FindingChange("scale", "severe", "notice", "scale!")]
    found.clear()
    assert changes("edge") == []  # what it was found by was not measured
    assert changes("edge", "layers") == [FindingChange("scale", None, "severe", "scale!")]


def test_dear_findings_are_left_for_when_they_are_affordable_and_stand_meanwhile(monkeypatch):
    called = []

    def dear(m, s):
        called.append("dear")
        time.sleep(0.002)
        return Finding("dear", Severity.NOTICE, "dear!", "") if len(called) < 9 else None

    def cheap(m, s):
        called.append("cheap")

    monkeypatch.setattr(changes_module, "FINDINGS", [dear, cheap])
    standing, look = Findings(), Look(None, None, {"edge": 0.02})
    assert standing.changes(look, whole=False) == ([], [])
    assert called == []  # what they cost is not known yet
    assert [c.key for c in standing.changes(look)[0]] == ["dear"]
    for _ in range(6):
        assert standing.changes(look, whole=False) == ([], [])
    assert called == ["dear", "cheap", *["cheap"] * 6]
    called.append("one more")
    assert standing.changes(look)[0] == [FindingChange("dear", None, "notice", "dear!")]


@pytest.mark.parametrize("name", ["tanh MLP", "batch norm", "dropout", "convolution", "linear regression"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.LBFGS])
def test_every_finding_can_be_looked_for(name, optimizer):
    """On inputs far from standardized, so that more of them have something to say."""
    case = make(name)
    case.data = [(100 * x, y) for x, y in batches_of(case)]
    made = optimizer(case.model.parameters(), lr=1e-4)
    monitor = wc.Monitor(case.model, case.loss_fn, case.data, made, every=1, overhead=None)
    monitor.measure()
    assert not [note for record in monitor.history for note in record.notes if "could not be looked for" in note]


def test_an_unstable_rate_is_a_finding_when_it_comes():
    case, optimizer, monitor = followed(optimizer=torch.optim.SGD, lr=1e-3, every=1, steps=2)
    assert monitor.history.findings()["learning_rate"][0] == "good"
    for group in optimizer.param_groups:
        group["lr"] = 50.0
    train(case, optimizer, 1)
    change = next(c for c in monitor.history[-1].changes if c.key == "learning_rate")
    assert (change.before, change.severity) == ("good", "severe")
    assert monitor.history[-1].edge_ratio.value > 1
    assert monitor.history.findings()["learning_rate"][0] == "severe"


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_history_and_is_offline(tmp_path):
    _, _, monitor = followed(steps=8)
    page = monitor.save(tmp_path / "monitor.html").read_text(encoding="utf-8")
    head = page[: page.index("<script>")]
    for word in ("http", " src=", "@import", "<link"):
        assert word not in head
    for key in ("edge", "curvature", "kappa", "rate"):
        assert f'id="chart-{key}"' in page
    for change in (c for r in monitor.history for c in r.changes):
        assert change.key in monitor.history.findings()
    assert str(monitor.history[-1].edge_ratio) in page
    assert len(page) < 6e6


def test_the_page_says_below_a_chart_what_its_tile_says_and_tells_the_last_changes_first(tmp_path):
    _, _, monitor = followed(every=10**6, steps=1)
    first = monitor.history[0]
    infinite = Estimate(math.inf, 1.0, math.inf, "no curvature along the gradient")
    monitor.history.records = [
        dataclasses.replace(first, changes=[FindingChange("a", "good", None, "At first it is well.")]),
        dataclasses.replace(
            first, step=9, kappa_effective=infinite, changes=[FindingChange("a", "severe", "good", "Then it is not.")]
        ),
    ]
    page = monitor.save(tmp_path / "monitor.html").read_text(encoding="utf-8")
    assert "κ_eff infinite." in page
    table = page[page.index("How the findings changed") :]
    assert "2 changes" in table
    assert table.index("Then it is not.") < table.index("At first it is well.")


def test_the_page_of_nothing_and_of_failures(tmp_path):
    _, _, monitor = followed(every=10**6, steps=0)
    assert "Nothing was measured yet" in monitor.save(tmp_path / "empty.html").read_text(encoding="utf-8")
    evil = "<img src=x onerror=alert(1)></script>"
    monitor.history.records.append(
        wc.results.Record(
            3, 1.0, "every", failed=evil, notes=[evil], changes=[FindingChange(evil, "severe", None, evil)]
        )
    )
    monitor.history.run["model"] = evil
    page = monitor.save(tmp_path / "failed.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x") >= 4


@pytest.mark.parametrize("figure", ["edge_ratio", "largest", "kappa_mean", "kappa_effective", "loss", "learning_rate"])
def test_every_figure_can_be_drawn(figure):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    case, optimizer, monitor = followed(steps=1)
    for _ in range(6):
        monitor.observe(1.0)
        train(case, optimizer, 1)
    _, ax = pyplot.subplots()
    assert monitor.plot(ax, figure) is ax
    steps, values = monitor.history.series(figure)
    assert ax.lines[0].get_xdata().tolist() == steps
    assert ax.lines[0].get_ydata().tolist() == values
    if figure == "edge_ratio":
        assert list(ax.lines[1].get_ydata()) == [1, 1]
    pyplot.close("all")


def test_a_figure_without_data_is_not_in_the_legend():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    model, (X, y) = nn.Linear(3, 1), (torch.randn(20, 3), torch.randn(20, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = wc.Monitor(model, nn.MSELoss(), (X, y), optimizer, overhead=None)
    monitor.measure()
    ax = monitor.plot(figure="largest")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["λ_max(H)"]
    pyplot.close("all")


def test_a_figure_that_does_not_exist():
    _, _, monitor = followed(steps=1)
    with pytest.raises(ValueError, match="one of edge_ratio"):
        monitor.plot(figure="entropy")


def test_a_record_survives_its_json():
    record = wc.results.Record(
        7,
        1.5,
        "jump",
        math.inf,
        0.1,
        Estimate(2.0, 1.0, math.inf, "x", 0.9),
        jumps=[6],
        changes=[FindingChange("a", None, "notice", "c")],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert wc.results.Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record
    assert record.numbers()["edge_ratio"] == 1.0  # only a lower end is known
    infinite = dataclasses.replace(record, edge_ratio=Estimate(math.inf, 1.0, math.inf, "x", 0.9))
    assert infinite.numbers()["edge_ratio"] == math.inf
