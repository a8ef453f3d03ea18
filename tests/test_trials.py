"""Remedies tried on copies: against the same steps written out, and without a trace in the run."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc
from wellcond.examination.subject import Settings, Subject
from wellcond.problem import random_state
from wellcond.trials import Effect, Network, NoEffect, Trained, Training, Trials
from wellcond.trials.effect import why_none


def small_run(dropout: float = 0.0, examples: int = 60, batch_size: int = 20) -> wc.TrainingRun:
    torch.manual_seed(0)
    X = torch.randn(examples, 5)
    y = (X[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = wc.TrainingRun(model, nn.CrossEntropyLoss(), DataLoader(TensorDataset(X, y), batch_size), optimizer)
    for inputs, targets in run.data:
        optimizer.zero_grad()
        run.loss_fn(model(inputs), targets).backward()
        optimizer.step()
    return run


def trials_of(run: wc.TrainingRun, steps: int = 7) -> Trials:
    subject = Subject.of(run, Settings())
    return Trials(run, subject.problem, steps)


def times_ten(run: wc.TrainingRun) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] *= 10


def test_a_trial_is_plain_training_from_the_runs_own_state():
    run = small_run(examples=20)  # one batch
    effect = trials_of(run).effect(times_ten)
    for factor, measured in ((1, effect.without), (10, effect.with_remedy)):
        model, optimizer = copy.deepcopy((run.model, run.optimizer))
        optimizer.param_groups[0]["lr"] *= factor
        X, y = next(iter(run.data))
        for _ in range(7):
            optimizer.zero_grad()
            run.loss_fn(model(X), y).backward()
            optimizer.step()
        assert measured.value == pytest.approx(run.loss_fn(model(X), y).item(), rel=1e-6)
    assert effect.better
    assert "7 steps on a copy" in effect.without.how


def test_what_the_loss_uses_beside_the_model_is_left_as_it_was():
    run = small_run(examples=20)
    critic = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    run = wc.TrainingRun(run.model, None, run.data, run.optimizer, lambda m, batch: critic(m(batch[0])).square().mean())
    before = copy.deepcopy(critic.state_dict())
    trials = trials_of(run)
    assert isinstance(trials.effect(times_ten), Effect)
    assert isinstance(trials.from_new_weights("BNP"), Effect)
    assert trials.first_steps
    assert all(torch.equal(x, before[name]) for name, x in critic.state_dict().items())
    assert all(p.grad is None for p in critic.parameters())


def test_trials_leave_no_trace_and_repeat():
    run = small_run(dropout=0.5)
    before = copy.deepcopy(
        (run.model.state_dict(), run.optimizer.state_dict(), [p.grad for p in run.model.parameters()])
    )
    state = torch.random.get_rng_state()
    trials = trials_of(run)
    first, second = trials.effect(times_ten), trials_of(run).effect(times_ten)
    assert first == second
    assert torch.equal(state, torch.random.get_rng_state())
    after = (run.model.state_dict(), run.optimizer.state_dict(), [p.grad for p in run.model.parameters()])
    for a, b in zip(_tensors(before), _tensors(after), strict=True):
        assert torch.equal(a, b)
    assert first.without.low < first.without.high  # over the orders of three batches


def _tensors(x):
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, dict):
        for value in x.values():
            yield from _tensors(value)
    elif isinstance(x, tuple | list):
        for value in x:
            yield from _tensors(value)


def test_what_would_go_beyond_the_budget_is_not_tried():
    """Three orders of three batches: 7 steps and a loss are 7/3 + 1/2 gradients, as it is and changed."""
    run = small_run()
    subject = Subject.of(run, Settings())
    trials = Trials(run, subject.problem, 7, budget=18)
    assert isinstance(trials.effect(times_ten), Effect)
    assert trials.spent == pytest.approx(2 * 3 * (7 / 3 + 0.5))
    told = "Trials may cost 18 gradients here; what would have cost more was not tried."
    # As it is costs nothing more, and changed too much.
    assert trials.effect(times_ten) == NoEffect(f"the remedy was not tried: {told.rstrip('.')}")
    assert trials.from_new_weights("standardize inputs") == NoEffect()  # it was told
    assert trials.normalized("standardize inputs") == NoEffect()
    assert trials.notes == [told]
    assert Settings().trial_budget(2000) == math.inf
    run = small_run(examples=20)  # one batch, in which a step from new weights counts for 1.5 gradients
    for budget, steps in ((1000, 50), (900, 20)):
        trials = Trials(run, Subject.of(run, Settings()).problem, 50, budget=budget)
        effect = trials.from_new_weights("standardize inputs")
        assert effect.figure.startswith(f"loss after {steps} steps")
        assert trials.spent == 2 * 6 * (1.5 * steps + 0.5)
    assert Settings(quick=True).trial_budget(2001) < Settings().trial_budget(2001) < 3000


def test_what_is_attached_to_the_optimizer_is_on_the_copies_too():
    run = small_run(examples=20)
    wc.regularize(run.optimizer, wc.penalties.L1(0.1))
    zeros = []

    def count(copied: wc.TrainingRun) -> None:
        copied.optimizer.register_step_post_hook(lambda *_: zeros.append(int((copied.model[0].weight == 0).sum())))

    trials_of(run, steps=40).effect(count)
    assert zeros[-1] > 0


def test_a_diverging_trial_is_infinite():
    run = small_run(examples=20)
    run.model[1] = nn.Identity()
    run.model[2] = nn.Identity()
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)

    def far(copied: wc.TrainingRun) -> None:
        copied.optimizer.param_groups[0]["lr"] = 1e10

    effect = trials_of(run, steps=30).effect(far)
    assert math.isinf(effect.with_remedy.value)
    assert effect.better is False


def test_a_run_that_cannot_be_copied_gives_no_effect_and_says_why():
    run = small_run()
    run.model.not_a_leaf = torch.ones(3, requires_grad=True) * 2
    trials = trials_of(run)
    assert trials.effect(times_ten) == NoEffect("the remedy could not be tried", failed=True)
    assert trials.best({1: times_ten}) == (1, NoEffect("the remedy could not be tried", failed=True))
    ((why, where), parts), *others = trials.failures.causes().items()
    assert not others
    assert parts == ["what a remedy does to a copy of the run"]
    assert why.startswith("of RuntimeError: Only Tensors created explicitly by the user")
    assert "in __deepcopy__" in where


def test_several_trials_without_an_effect_say_what_failed_or_else_what_was_told_last():
    failed, told, later = NoEffect("it failed", failed=True), NoEffect("no room"), NoEffect("no place")
    assert why_none([told, failed, later, NoEffect()]) is failed
    assert why_none([told, later, NoEffect()]) is later
    assert why_none([]) == NoEffect()


def test_a_change_without_a_place_is_a_note_and_the_trial_from_where_the_run_is_comes_second():
    run = small_run()  # with batch norm
    trials = trials_of(run)
    why = "the network has batch norm already (1); take another change"
    reason = f"the remedy was not tried: Not looked for: what “batch norm” does to a copy of the run, since {why}"
    assert trials.of_network("batch norm") == NoEffect(reason)
    assert len(trials.notes) == 2
    assert not trials.failures.causes()
    assert trials.of_network("standardize inputs") == trials.from_new_weights("standardize inputs")
    run.model[0].reset_parameters = run.model[1].reset_parameters = run.model[4].reset_parameters = None
    assert "at the best learning rate" in trials_of(run).of_network("standardize inputs").figure


@pytest.mark.parametrize(
    ("best", "options", "tried"),
    [
        (0, {}, [-6, -4, -2, 0, 2, 4, 6, -1, 1]),
        (7, {}, [-6, -4, -2, 0, 2, 4, 6, 8, 5, 7]),
        (-5, {"decades": 1}, [-2, 0, 2, -4, -6, -5, -3]),
        (-4, {"decades": 1, "halves": False}, [-2, 0, 2, -4, -6]),
        (-4, {"decades": 1, "halves": False, "further": False}, [-2, 0, 2]),
    ],
)
def test_the_search_for_a_rate_goes_on_while_that_helps(best, options, tried, monkeypatch):
    """The loss is lowest at 10^(best/2) times the given rate; `tried` are the rates looked at, by half decades."""
    seen = []

    def run(_, factor, steps):
        seen.append(round(2 * math.log10(factor)))
        return Trained(None, abs(seen[-1] - best), [], factor, None, None)

    monkeypatch.setattr(Training, "run", run)
    model = nn.Linear(1, 1)
    training = Training(Network.copy_of(model), None, torch.optim.SGD(model.parameters(), lr=1.0))
    found = training.best(3, **options)
    assert seen == tried
    assert round(2 * math.log10(found.factor)) == min(tried, key=lambda k: abs(k - best))
    monkeypatch.setattr(Training, "run", lambda *_: None)
    with pytest.raises(ValueError, match="finite at no learning rate"):
        training.best(3, **options)


def test_a_loss_that_does_not_use_the_model_it_is_given_is_noted():
    run = small_run()
    given = run.model
    run = wc.TrainingRun(
        given, None, run.data, run.optimizer, lambda _, b: nn.functional.cross_entropy(given(b[0]), b[1])
    )
    trials = trials_of(run)
    with random_state(0, torch.device("cpu")):
        assert trials.effect(times_ten).failed
    assert "does not depend on the copy" in next(iter(trials.failures.causes()))[0]
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in given.parameters())


def test_findings_carry_the_effect_of_their_remedy():
    torch.manual_seed(0)
    X = torch.randn(60, 4)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    examination = wc.examine(model, nn.MSELoss(), (X, X.sum(1, keepdim=True) + torch.randn(60, 1)), optimizer)
    found = next(f for f in examination.findings if f.key == "learning_rate")
    assert found.severity is wc.results.Severity.SEVERE
    assert found.effect.with_remedy.value < found.effect.without.value
    told = next(f for f in examination.to_json()["findings"] if f["key"] == "learning_rate")["effect"]
    assert told["with_remedy"]["value"] == found.effect.with_remedy.value
    quiet = next(f for f in examination.findings if f.severity is wc.results.Severity.GOOD)
    assert quiet.effect is None
