"""Findings about data, layers and the network: planted causes are found, healthy runs stay quiet, effects are true."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import wellcond as wc
from tests.runs import NETWORKS, Convolution, data, followed, found, measured, mlp, trained
from wellcond.examination.findings import dead_units, inputs, layer_conditioning, negative_curvature, normalization
from wellcond.examination.measurements import measure
from wellcond.examination.subject import Settings, Subject
from wellcond.normalization.units import units_of
from wellcond.trials import Effect, NoEffect

DATA = ["digits", "wine", "breast cancer", "diabetes", "iris"]
SEVERE, NOTICE, GOOD = wc.results.Severity.SEVERE, wc.results.Severity.NOTICE, wc.results.Severity.GOOD


def healthy(name: str, network: str) -> wc.TrainingRun:
    # Draws without two dead units of 16 by the end, which happen by chance too.
    torch.manual_seed(0 if network == "transformer" else 1)
    given = data(name)
    outputs = 1 if name == "diabetes" else int(given[1].max()) + 1
    return trained(NETWORKS[network](given[0].shape[1], outputs), given)


# -- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("network", ["MLP", "convolution", "transformer"])
def test_standardized_inputs_are_fine(name, network):
    finding, _ = found(healthy(name, network), inputs.find)
    assert finding.severity is GOOD
    assert finding.effect is None


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_raw_inputs_are_severe_and_a_trial_from_new_weights_says_so(act):
    """From the present weights, which the raw data have spoilt, there is no gain: 1.09 and 1.09 with tanh."""
    torch.manual_seed(0)
    given = data("wine", standardized=False)
    run = trained(mlp(13, 3, act=act), given)
    finding, subject = found(run, inputs.find)
    assert finding.severity is SEVERE
    assert "off-center and on different scales" in finding.title
    assert "feature 12 (747 ± 314)" in finding.text
    X = given[0].double()
    assert finding.evidence["mean of feature 12"].value == pytest.approx(float(X[:, 12].mean()), rel=1e-9)
    assert finding.evidence["spread of feature 12"].value == pytest.approx(float(X[:, 12].std(correction=0)), rel=1e-9)
    centered = torch.linalg.svdvals(torch.cat([torch.ones(len(X), 1).double(), X - X.mean(0)], 1))
    assert finding.evidence["centered"].value == pytest.approx(float(centered[0] / centered[-1]), rel=1e-6)
    assert finding.effect.without.low > 10 * finding.effect.with_remedy.high
    assert "new weights" in finding.effect.figure
    assert not subject.failures.causes()


def test_the_effect_is_that_of_training_by_hand():
    """The same draw of weights, steps and rates, each at the best of three, written out; the remedy is the snippet."""
    torch.manual_seed(0)
    run = trained(mlp(13, 3), data("wine", standardized=False), lr=1e-2)
    finding, subject = found(run, inputs.find, quick=True)
    changed = followed(finding.remedy, run)
    front = changed.model[0]
    assert changed.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)
    assert not torch.equal(changed.model[1][0].weight, run.model[0].weight)
    for first, tried in ((nn.Identity(), finding.effect.without), (front, finding.effect.with_remedy)):
        best = {}
        for rate in (1e-3, 1e-2, 1e-1):
            model = copy.deepcopy(run.model)
            torch.manual_seed(0)
            for layer in model[::2]:
                layer.reset_parameters()
            model = nn.Sequential(first, model).double()
            optimizer = torch.optim.Adam(model.parameters(), lr=rate)
            batches = [(x.double(), y) for x, y in subject.problem.batches]
            for k in range(10):
                x, y = batches[k % len(batches)]
                optimizer.zero_grad()
                run.loss_fn(model(x), y).backward()
                optimizer.step()
            best[rate] = sum(len(x) * run.loss_fn(model(x), y).item() for x, y in batches) / 178
        # its parameters are float32, as the run's are
        assert tried.low * (1 - 1e-3) <= min(best.values()) <= tried.high * (1 + 1e-3)


def test_off_center_and_small_inputs_are_told_apart():
    torch.manual_seed(0)
    X, y, loss_fn = data("iris")
    for change, words in ((X + 30, "are off-center:"), (X / 100, "are all on a small scale:")):
        finding, _ = found(trained(mlp(4, 3), (change, y, loss_fn)), inputs.find)
        assert words in finding.title
        assert finding.severity is SEVERE


def test_channels_of_a_convolution_are_named_and_standardized_along_their_dimension():
    torch.manual_seed(0)
    X = torch.randn(80, 2, 10) * torch.tensor([[1.0], [500.0]]) + torch.tensor([[0.0], [3000.0]])
    y = (X[:, 0].mean(1) > 0).long()
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    finding, _ = found(trained(model, (X, y, nn.CrossEntropyLoss())), inputs.find)
    assert finding.severity is SEVERE
    assert "channel 1 (" in finding.text
    assert "wc.standardize(data, dim=1)" in finding.remedy
    assert finding.effect.better


def test_zero_one_features_are_no_severe_fault_where_nothing_could_be_tried():
    torch.manual_seed(0)
    X = (torch.rand(400, 6) < torch.tensor([0.5, 0.5, 0.3, 0.2, 0.003, 0.003])).float()
    X[0, 4:] = 1
    run = trained(mlp(6, 1), (X, X.sum(1, keepdim=True), nn.MSELoss()))
    _, subject = found(run, inputs.find)
    subject.trials.steps = 0
    finding = inputs.find(measured(subject, Settings()), subject)
    assert not finding.effect
    assert finding.severity <= NOTICE


def test_a_remedy_that_does_harm_in_its_trial_is_not_advised():
    """99 features are noise on a small scale: raw, the network does not see them; scaled, it must unlearn them."""
    torch.manual_seed(0)
    X = 1e-2 * torch.randn(200, 100)
    X[:, 0] = torch.randn(200)
    y = X[:, :1] + 0.3 * torch.randn(200, 1)
    run = trained(nn.Linear(100, 1), (X, y, nn.MSELoss()), optimizer=torch.optim.SGD, lr=0.05, batch_size=5, epochs=1)
    finding, subject = found(run, inputs.find)
    assert finding.evidence["kappa"].value > 10 * finding.evidence["standardized"].value  # severe by its figures alone
    assert finding.severity is GOOD
    assert finding.effect.better is False
    assert not finding.remedy
    assert "leave them" in finding.text
    subject.trials.steps = 0
    untried = inputs.find(measured(subject, Settings()), subject)
    assert untried.severity is SEVERE
    assert untried.remedy


def test_what_is_left_of_a_severity_after_a_trial():
    low, high, less = (wc.results.Estimate(x, x, x, "trial") for x in (0.1, 0.5, 0.099))
    assert SEVERE.after(None) is SEVERE.after(NoEffect()) is SEVERE
    assert SEVERE.after(Effect("loss", high, low)) is SEVERE
    assert SEVERE.after(Effect("loss", low, high)) is GOOD
    assert SEVERE.after(Effect("loss", low, low)) is NOTICE
    assert NOTICE.after(Effect("loss", low, less)) is GOOD


def test_findings_about_layers_leave_no_trace():
    torch.manual_seed(0)
    run = trained(mlp(13, 3), data("wine", standardized=False))
    before = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    state = torch.random.get_rng_state()
    found(run, inputs.find, quick=True)
    assert torch.equal(state, torch.random.get_rng_state())
    assert str(before) == str((run.model.state_dict(), run.optimizer.state_dict()))
    for a, b in zip(before[0].values(), run.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


# -- dead and duplicate units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("network", ["MLP", "convolution", "transformer"])
def test_healthy_units_are_fine(name, network):
    finding, _ = found(healthy(name, network), dead_units.find)
    assert finding.severity is GOOD


def test_units_against_a_dense_twin():
    """Correlations by torch.corrcoef, over columns with planted multiples, constants and units that fire once."""
    torch.manual_seed(0)
    X = torch.randn(70, 5, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Dropout(0.3), nn.Linear(40, 2)).double()
    with torch.no_grad():
        W, b = model[0].weight, model[0].bias
        W[7], b[7] = W[3], b[3]
        W[9], b[9] = -W[3], -b[3]  # tanh is odd
        W[20], b[20] = W[3] * (1 + 1e-2), b[3]
        W[11], b[11] = 0, 0.3
        b[12] = 80.0
        W[31], b[31] = W[30], b[30]
    (units,) = units_of(wc.Problem(model, nn.MSELoss(), (X, X[:, :2])))
    hidden = torch.tanh(model[0](X)).detach()
    dead = (hidden.std(0) < 1e-6).nonzero().flatten().tolist()
    corr = torch.corrcoef(hidden.T).abs().nan_to_num()
    pairs = {(i, j) for i, j in (corr > 1 - 1e-6).nonzero().tolist() if i < j}
    assert units.dead == dead == [11, 12]
    assert units.duplicates == [[3, 7, 9], [30, 31]]
    assert {(i, j) for g in units.duplicates for i in g for j in g if i < j} == pairs
    assert (units.layer, units.seen_by, units.spare) == ("0", "2", [7, 9, 11, 12, 31])


def test_units_that_fire_on_one_example_are_no_duplicates():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0]]))
        model[0].bias.copy_(torch.tensor([-8.5, -17.5]))
    X = torch.arange(10.0, dtype=torch.float64)[:, None]
    (units,) = units_of(wc.Problem(model, nn.MSELoss(), (X, X)))
    assert torch.relu(model[0](X)).count_nonzero(0).tolist() == [1, 1]
    assert units.spare == []


@pytest.mark.parametrize("plant", ["dead", "alike"])
@pytest.mark.parametrize("network", ["MLP", "convolution"])
def test_planted_units_are_found_and_mended(plant, network):
    torch.manual_seed(0)
    given = data("wine")
    model = mlp(13, 3) if network == "MLP" else Convolution(13, 3)
    layer, after = (model[0], model[2]) if network == "MLP" else (model.conv2, model.readout)
    with torch.no_grad():
        if plant == "dead":
            layer.bias[: len(layer.bias) - 1] = -50.0
        else:
            layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
            layer.bias.fill_(0.5)
            if network == "MLP":
                after.weight.fill_(0.1)
            else:
                after.weight.copy_(after.weight.unflatten(1, (8, -1))[:, :1].expand(-1, 8, -1).flatten(1))
    run = trained(model, given)
    finding, subject = found(run, dead_units.find)
    count = len(layer.bias)
    assert finding.severity >= NOTICE
    assert finding.severity is SEVERE or not finding.effect.saves()
    kind = "dead" if plant == "dead" else "duplicate"
    assert finding.evidence[f"{kind} units"].value == count - 1
    assert f"{count - 1} of {count} units of layer “{'0' if network == 'MLP' else 'conv2'}” are {kind}" in finding.title
    assert finding.effect is not None
    if finding.remedy:  # the snippet, with the draws that the trial has, is what the trial did
        tried = copy.deepcopy(run.model)
        units = units_of(subject.problem)[0 if network == "MLP" else 1]
        torch.manual_seed(5)
        by_hand = followed(finding.remedy, run).model
        torch.manual_seed(5)
        dead_units.redraw(wc.TrainingRun(tried, None, None), units)
        for a, b in zip(by_hand.parameters(), tried.parameters(), strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(layer.weight, by_hand.get_submodule(units.layer).weight)


def with_dead_units() -> nn.Sequential:
    torch.manual_seed(0)
    model = mlp(13, 3)
    with torch.no_grad():
        model[0].bias[:10] = -50.0
    return model


def test_dead_units_of_a_frozen_layer_are_no_finding():
    model = with_dead_units()
    model[0].requires_grad_(False)
    finding, _ = found(trained(model, data("wine")), dead_units.find)
    assert finding.severity is GOOD


def test_dead_units_before_a_layer_that_is_frozen_are_drawn_anew_alone():
    model = with_dead_units()
    model[2].requires_grad_(False)
    run = trained(model, data("wine"))
    finding, _ = found(run, dead_units.find)
    assert finding.severity is SEVERE
    assert not finding.effect
    assert "not tried" in finding.text
    before, after = model[0].weight, followed(finding.remedy, run).model[0].weight
    assert torch.equal(before[10:], after[10:])
    assert not torch.equal(before[:10], after[:10])


def test_redrawing_keeps_the_function():
    torch.manual_seed(0)
    run = trained(mlp(13, 3), data("wine"))
    X = run.data.dataset.tensors[0]
    with torch.no_grad():
        run.model[0].bias[:5] = -50.0
        run.model[0].weight[9], run.model[0].bias[9] = run.model[0].weight[8], run.model[0].bias[8]
    before = run.model(X)
    (first, *_) = units_of(wc.Problem(run.model, run.loss_fn, run.data))
    assert first.spare == [0, 1, 2, 3, 4, 9]
    dead_units.redraw(run, first)
    torch.testing.assert_close(run.model(X), before)
    assert units_of(wc.Problem(run.model, run.loss_fn, run.data))[0].spare == []


def test_units_that_were_pruned_and_constant_pixels_are_no_fault():
    torch.manual_seed(0)
    run = trained(mlp(64, 10), data("digits", standardized=False))
    with torch.no_grad():
        for j in range(9):
            run.model[0].weight[j], run.model[0].bias[j], run.model[2].weight[:, j] = 0, 0, 0
    first, _ = units_of(wc.Problem(run.model, run.loss_fn, run.data))
    assert first.layer == "0"
    hidden = run.model[:2](run.data.dataset.tensors[0])
    died = [j for j in range(9, 16) if (hidden[:, j] == hidden[0, j]).all()]  # in training on raw pixels
    assert first.dead == [*range(9), *died]
    kept = dead_units.without_pruned(run.model, first)
    assert (kept.count, kept.spare) == (7, died)
    with torch.no_grad():  # all of them are not pruned but a network of zeros
        run.model[0].weight.zero_(), run.model[0].bias.zero_(), run.model[2].weight.zero_()
    first, _ = units_of(wc.Problem(run.model, run.loss_fn, run.data))
    assert dead_units.without_pruned(run.model, first).spare == list(range(16))


def test_a_network_without_hidden_units_has_no_such_finding():
    torch.manual_seed(0)
    finding, _ = found(trained(nn.Linear(13, 3), data("wine")), dead_units.find)
    assert finding is None


class Shift(nn.Module):
    def forward(self, x):
        return x + 100.0


def shifted(by: bool) -> wc.TrainingRun:
    torch.manual_seed(0)
    X = torch.randn(150, 8)
    y = (X[:, 0] * X[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6), nn.Tanh(), Shift() if by else nn.Identity())
    model.append(nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    nn.CrossEntropyLoss()(model(X), y).backward()
    optimizer.step()
    return wc.TrainingRun(model, nn.CrossEntropyLoss(), (X, y), optimizer)


def test_a_hidden_layer_far_off_center_is_found_by_its_condition_number():
    run = shifted(True)
    found = next(f for f in examined_findings(run) if f.key == "layer_conditioning")
    H = copy.deepcopy(run.model[:5]).double()(run.data[0].double()).detach()
    s = torch.linalg.svdvals(torch.cat([torch.ones(len(H), 1, dtype=torch.float64), H], 1))
    assert found.evidence["kappa"].value == pytest.approx(float(s[0] / s[-1]), rel=1e-6)
    assert found.severity >= NOTICE
    assert "Layer “5”" in found.title
    assert found.effect is not None
    assert (found.severity is SEVERE) == found.effect.saves()
    assert all(f.key != "layer_conditioning" for f in examined_findings(shifted(False)))


def test_parameters_that_the_optimizer_lacks_or_holds_frozen_are_told_with_code_that_mends_it():
    run = shifted(False)
    run.model[5].bias.requires_grad_(False)
    run.optimizer = torch.optim.SGD([*run.model[0].parameters(), run.model[5].bias], lr=0.1)
    found = next(f for f in examined_findings(run) if f.key == "unreached")
    assert "the optimizer does not have 3 parameters (2.weight, 2.bias, 5.weight)" in found.title.lower()
    assert "frozen, 1 parameter (5.bias)" in found.title
    assert found.severity is NOTICE
    assert found.effect.better
    assert all(f.key != "unreached" for f in examined_findings(followed(found.remedy, run)))
    assert [found.evidence[k].value for k in ("unreached", "not in the optimizer", "frozen in the optimizer")] == [
        0,
        3,
        1,
    ]


def test_a_frozen_part_that_the_optimizer_does_not_have_is_meant():
    run = shifted(False)
    run.model[0].requires_grad_(False)
    run.optimizer = torch.optim.SGD(run.model[2:].parameters(), lr=0.1)
    assert all(f.key != "unreached" for f in examined_findings(run))


def examined_findings(run: wc.TrainingRun) -> list[wc.results.Finding]:
    return wc.examine(run.model, run.loss_fn, run.data, run.optimizer).findings


def test_a_readout_without_bias_behind_a_layer_norm_is_no_badly_conditioned_layer():
    """GPT-2's: its inputs sum to nearly nothing in each row, and by the same in all rows."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(8)
    with torch.no_grad():
        norm.bias.fill_(1e-6)
    model = nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 3, bias=False))
    X = torch.randn(60, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = wc.TrainingRun(model, nn.CrossEntropyLoss(), (X, torch.randint(3, (60,))), optimizer)
    finding, subject = found(run, layer_conditioning.find)
    _, readout = wc.layer_conditioning(subject.problem)
    assert readout.kappa.value > layer_conditioning.BAD > 1e4 * readout.standardized.value
    assert finding is None


# -- normalization -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("network", ["MLP", "convolution"])
def test_networks_that_train_as_they_are_need_no_normalization(name, network):
    finding, subject = found(healthy(name, network), normalization.find)
    assert finding.severity is GOOD
    assert not finding.remedy
    assert not subject.trials.notes


DEEP = {
    "sigmoids, Adam": (nn.Sigmoid, 8, torch.optim.Adam, 3e-3, NOTICE),
    "sigmoids, SGD": (nn.Sigmoid, 6, torch.optim.SGD, 0.1, SEVERE),
    "ReLU, SGD": (nn.ReLU, 8, torch.optim.SGD, 0.1, SEVERE),
    "tanh, SGD": (nn.Tanh, 12, torch.optim.SGD, 0.1, SEVERE),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_network_gets_the_normalization_that_a_trial_says_pays(name):
    """Trained by hand as the remedy says, from the trial's draws, it ends where the trial did."""
    act, depth, optimizer, lr, least = DEEP[name]
    torch.manual_seed(0)
    run = trained(mlp(64, 10, depth=depth, act=act), data("digits"), optimizer=optimizer, lr=lr, epochs=2)
    finding, subject = found(run, normalization.find)
    assert finding.severity >= least
    assert finding.effect.better
    by_hand = []
    for seed in range(3):
        torch.manual_seed(seed)
        other = followed(finding.remedy, run)
        assert sum(isinstance(m, nn.BatchNorm1d) for m in other.model.modules()) == depth
        # The remedy draws in the order of model.modules(), as the trial does.
        model = other.model.double()
        optimizer = type(other.optimizer)(model.parameters(), lr=other.optimizer.param_groups[0]["lr"])
        batches = [(x.double(), y) for x, y in subject.problem.batches]
        for k in range(50):
            x, y = batches[k % len(batches)]
            optimizer.zero_grad()
            run.loss_fn(model(x), y).backward()
            optimizer.step()
        by_hand.append(sum(len(x) * run.loss_fn(model(x), y).item() for x, y in batches) / 400)
    # Steps as large as the best ones let float32, which the trial steps in, and float64 part.
    assert finding.effect.with_remedy.value == pytest.approx(sorted(by_hand)[1], rel=0.3)
    assert max(by_hand) < finding.effect.without.low


@pytest.mark.parametrize("batch_size", [1, 4])
def test_in_tiny_batches_no_batch_norm_is_advised(batch_size):
    torch.manual_seed(0)
    X, y, loss_fn = data("digits", most=24)
    run = trained(mlp(64, 10, depth=3, act=nn.Sigmoid), (X, y, loss_fn), batch_size=batch_size, epochs=1)
    finding, _ = found(run, normalization.find)
    assert "batch norm" not in finding.title.lower()
    assert "BatchNorm1d" not in finding.remedy
    assert finding.title.startswith(("Layer norm", "BNP", "There is no normalization layer, and with"))


def test_a_network_with_a_normalization_or_without_hidden_layers_has_no_such_finding():
    torch.manual_seed(0)
    given = data("wine")
    deep = mlp(13, 3, depth=6, act=nn.Sigmoid)
    for model in (
        nn.Linear(13, 3),
        nn.Sequential(nn.LayerNorm(13), deep),
        nn.Sequential(deep, nn.Identity()).apply(_weight_norm),
    ):
        finding, _ = found(trained(model, given, epochs=1), normalization.find)
        assert finding is None
    run = trained(mlp(13, 3), given, epochs=1)
    wc.precondition(run.optimizer, wc.BatchNormPreconditioner(run.model))
    assert found(run, normalization.find)[0] is None


def _weight_norm(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.utils.parametrizations.weight_norm(module)


# -- negative curvature ------------------------------------------------------------------------------------------------


def near_a_saddle(scale: float, **options) -> wc.TrainingRun:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    X, y, loss_fn = data("wine")
    return trained(model, (X, y, loss_fn), batch_size=len(X), epochs=1, **options)


def test_a_jump_off_a_saddle_is_advised_where_training_stays_there():
    run = near_a_saddle(1e-3, optimizer=torch.optim.SGD, lr=0.02)
    settings = Settings()
    subject = Subject.of(run, settings)
    finding = negative_curvature.find(measure(subject, settings), subject)
    assert finding.severity is NOTICE
    assert finding.effect.saves()
    X, y = next(iter(run.data))
    # The trial looks for the direction in float64, the code in the model's float32.
    for other, tried, rel in (
        (followed(finding.remedy, run), finding.effect.with_remedy, 0.1),
        (run, finding.effect.without, 1e-3),
    ):
        for _ in range(50):
            other.optimizer.zero_grad()
            other.loss_fn(other.model(X), y).backward()
            other.optimizer.step()
        assert tried.value == pytest.approx(other.loss_fn(other.model(X), y).item(), rel=rel)


def test_where_training_leaves_a_saddle_by_itself_nothing_is_advised():
    run = near_a_saddle(0.3, optimizer=torch.optim.SGD, lr=1.0)
    settings = Settings()
    subject = Subject.of(run, settings)
    finding = negative_curvature.find(measure(subject, settings), subject)
    assert "Strong negative curvature" in finding.title
    assert finding.severity is GOOD
    assert not finding.remedy
    assert not finding.effect.saves()
