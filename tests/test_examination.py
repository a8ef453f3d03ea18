"""The whole examination: its figures against dense answers, its findings against planted causes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc
from tests.problems import make, train
from wellcond.examination.row_norms import row_norm_correlation
from wellcond.parameters import flatten


def wine_run(scaled: bool, *, hidden: int = 12, lr: float = 1e-2, steps: int = 60, optimizer=torch.optim.Adam):
    torch.manual_seed(0)
    X, y = (torch.tensor(a) for a in load_wine(return_X_y=True))
    X = X.float()
    if scaled:
        X = (X - X.mean(0)) / X.std(0)
    model = nn.Sequential(nn.Linear(13, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    loss_fn = nn.CrossEntropyLoss()
    optimizer = optimizer(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model(X), y).backward()
        optimizer.step()
    return model, loss_fn, (X, y), optimizer


def finding(examination: wc.results.Examination, key: str) -> wc.results.Finding:
    return next(f for f in examination.findings if f.key == key)


def test_figures_are_those_of_a_dense_float64_computation():
    """With torch's own second derivative and the theory's formulas, nothing of ours."""
    model, loss_fn, (X, y), optimizer = wine_run(scaled=True)
    m = wc.examine(model, loss_fn, (X, y), optimizer).measurements
    double, parameters = copy.deepcopy(model).double(), [p.detach().double() for p in model.parameters()]
    names = [n for n, _ in model.named_parameters()]

    def loss(vector):
        values = dict(zip(names, wc_unflatten(vector, parameters), strict=True))
        return loss_fn(torch.func.functional_call(double, values, (X.double(),)), y)

    H = torch.autograd.functional.hessian(loss, flatten(parameters))
    state = [optimizer.state[p] for p in model.parameters()]
    P2 = flatten([1 / ((s["exp_avg_sq"].double() / (1 - 0.999**60)).sqrt() + 1e-8) for s in state])
    Hz = P2.sqrt()[:, None] * H * P2.sqrt()
    for key, matrix in (("hessian", H), ("hessian_preconditioned", Hz)):
        c, values = m.figures[key], torch.linalg.eigvalsh(matrix)
        assert float(values[-1]) in c.largest
        assert float(values[0]) in c.smallest
        assert float(len(values) * values[-1] / values.abs().sum()) in c.kappa_mean
        assert float((values < -1e-6 * values[-1]).double().mean()) in c.negative_fraction
        kept = values[values > c.theta * values[-1]].flip(0)
        for rho in (0.5, 0.9):
            assert float(values[-1] / kept[math.ceil(rho * len(kept)) - 1]) in c.kappa(rho)
        assert [e.value for e in c.top] == pytest.approx(values.flip(0)[:5].tolist(), rel=1e-6)
    assert m.edge is not None
    assert float(1e-2 / (1 - 0.9**60) * torch.linalg.eigvalsh(Hz)[-1] / 38) in m.edge.ratio
    rows = H.norm(dim=1)
    root_v = flatten([s["exp_avg_sq"] for s in state]).double().sqrt()
    expected = torch.corrcoef(torch.stack([root_v.log(), rows.log()]))[0, 1]
    assert m.row_norms.correlation.value == pytest.approx(float(expected), abs=1e-6)
    assert m.loss == pytest.approx(float(loss(flatten(parameters))), rel=1e-12)
    assert m.dtype == "float64"


def wc_unflatten(vector, like):
    return [piece.view(t.shape) for piece, t in zip(vector.split([t.numel() for t in like]), like, strict=True)]


@pytest.mark.parametrize("quick", [False, True])
def test_above_the_dense_limit_the_intervals_contain_the_dense_answers(quick):
    torch.manual_seed(0)
    X, y = (torch.tensor(a) for a in load_breast_cancer(return_X_y=True))
    X = ((X - X.mean(0)) / X.std(0)).float()
    loader = DataLoader(TensorDataset(X, y), batch_size=100, shuffle=True)
    model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))
    loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(4):
        for xb, yb in loader:
            optimizer.zero_grad()
            loss_fn(model(xb), yb).backward()
            optimizer.step()
    m = wc.examine(model, loss_fn, loader, optimizer, quick=quick, seed=3).measurements
    assert m.parameters == 2254 > 2000
    problem = wc.Problem(model, loss_fn, (X, y), dtype=torch.float64)
    P = wc.preconditioner_of(optimizer)
    with problem:
        for key, kind in (("hessian", wc.Hessian), ("gauss_newton", wc.GaussNewton)):
            for suffix, operator in (("", kind(problem)), ("_preconditioned", kind(problem).preconditioned(P))):
                c, dense = m.figures[key + suffix], wc.conditioning(operator, dense_limit=5000)
                assert c.spectrum is None
                top = dense.largest.value
                for listed, true in zip(c.top, dense.spectrum.flip(0).tolist(), strict=False):
                    assert abs(listed.value - true) < 0.01 * top
                slack = 1e-4 * top  # float32 against float64
                assert c.largest.low - slack <= top <= c.largest.high + slack
                assert c.kappa_mean.low <= dense.kappa_mean.value <= c.kappa_mean.high
                if key == "gauss_newton":
                    assert c.kappa_effective.low <= dense.kappa_effective.value <= c.kappa_effective.high
                if key == "hessian" and not suffix:
                    root_v = flatten([optimizer.state[p]["exp_avg_sq"].sqrt() for p in model.parameters()])
                    exact = row_norm_correlation(dense.squared_row_norms(), root_v)
                    assert exact.correlation.value in m.row_norms.correlation


def test_unscaled_inputs_are_severe_and_scaled_ones_are_not():
    bad, good = (wc.examine(*wine_run(scaled)) for scaled in (False, True))
    assert finding(bad, "inputs").severity is wc.results.Severity.SEVERE
    assert bad.findings[0].severity is bad.severity is wc.results.Severity.SEVERE
    assert (
        "The inputs are off-center and on different scales: κ of the first layer's ext" in finding(bad, "inputs").title
    )
    assert finding(good, "inputs").severity is wc.results.Severity.GOOD
    X = torch.tensor(load_wine().data)
    extended = torch.cat([torch.ones(len(X), 1, dtype=torch.float64), X.float().double()], 1)
    s = torch.linalg.svdvals(extended)
    assert finding(bad, "inputs").evidence["kappa"].value == pytest.approx(float(s[0] / s[-1]), rel=1e-6)


def test_a_learning_rate_above_the_edge_is_severe():
    model, loss_fn, data, _ = wine_run(True, optimizer=torch.optim.SGD, lr=0.1)
    at = {}
    for lr in (1e-4, 0.5, 1e3):
        examination = wc.examine(model, loss_fn, data, torch.optim.SGD(model.parameters(), lr=lr))
        found = finding(examination, "learning_rate")
        at[lr] = (found.severity, found.evidence["edge_ratio"].value)
        assert "its stability bound" in found.title
    assert at[1e-4][0] is wc.results.Severity.NOTICE  # far below: in a trial a larger rate wins
    assert at[1e3][0] is wc.results.Severity.SEVERE
    assert at[1e3][1] == pytest.approx(at[0.5][1] * 2000, rel=1e-6)


def test_the_effect_of_the_preconditioner_is_told():
    """Inputs of very different size are what a diagonal preconditioner mends."""
    torch.manual_seed(0)
    X = torch.randn(80, 4) * torch.tensor([100.0, 10.0, 1.0, 0.1])
    y = X @ torch.tensor([[0.01], [0.1], [1.0], [10.0]]) + 0.1 * torch.randn(80, 1)
    model, loss_fn = nn.Linear(4, 1), nn.MSELoss()
    nn.init.zeros_(model.weight)  # every direction has the same share of the loss
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss_fn(model(X), y).backward()
        optimizer.step()
    found = finding(wc.examine(model, loss_fn, (X, y), optimizer), "preconditioner")
    before, after = found.evidence.values()
    assert found.severity is wc.results.Severity.GOOD
    assert before.value > 100 * after.value
    assert "times better" in found.title
    sgd = wc.examine(model, loss_fn, (X, y), torch.optim.SGD(model.parameters(), lr=1e-3))
    assert all(f.key != "preconditioner" for f in sgd.findings)
    assert list(sgd.measurements.figures) == ["hessian", "gauss_newton"]


def test_a_preconditioner_that_does_nothing_is_told_as_such():
    model, X = nn.Linear(1, 1, bias=False), torch.randn(20, 1)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    nn.MSELoss()(model(X), 3 * X).backward()
    optimizer.step()
    found = finding(wc.examine(model, nn.MSELoss(), (X, 3 * X), optimizer), "preconditioner")
    assert "Adagrad changes the conditioning little: κ_eff of Gauss-Newton is 1" in found.title
    assert "no negative curvature" in finding(wc.examine(model, nn.MSELoss(), (X, 3 * X)), "negative_curvature").title


def test_strong_negative_curvature_is_noticed():
    class Saddle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.tensor([0.1, 0.1]))

        def forward(self, x):
            return (self.p[0] ** 2 - self.p[1] ** 2) * x

    one = torch.ones(1)
    examination = wc.examine(Saddle(), lambda o, t: o.sum(), (one, one))
    assert finding(examination, "negative_curvature").severity is wc.results.Severity.NOTICE


def test_unreached_parameters_are_a_finding_and_those_outside_the_optimizer_a_note():
    class Leftover(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(3, 1), nn.Linear(3, 2), nn.Linear(3, 1)

        def forward(self, x):
            return self.used(x) + self.frozen(x)

    model = Leftover()
    optimizer = torch.optim.Adam([*model.used.parameters(), *model.unused.parameters()], lr=1e-2)
    X, y = torch.randn(9, 3), torch.randn(9, 1)
    nn.MSELoss()(model(X), y).backward()
    optimizer.step()
    examination = wc.examine(model, nn.MSELoss(), (X, y), optimizer)
    assert "unused.weight, unused.bias" in finding(examination, "unreached").title
    assert examination.measurements.parameters == 12
    assert any("frozen.weight, frozen.bias" in note for note in examination.measurements.notes)


def test_an_optimizer_over_other_parameters_is_refused():
    model, loss_fn, data, _ = wine_run(True, steps=1)
    other = torch.optim.SGD(nn.Linear(3, 1).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="not the model's"):
        wc.examine(model, loss_fn, data, other)


def test_models_that_insist_on_float32_are_measured_in_it():
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 1)

        def forward(self, x):
            return self.inner(x) @ torch.eye(1)

    examination = wc.examine(Insists(), nn.MSELoss(), (torch.randn(9, 3), torch.randn(9, 1)))
    assert examination.measurements.dtype == "float32"
    assert any("Measured in float32" in note for note in examination.measurements.notes)


def test_losses_that_hide_the_output_are_examined_without_gauss_newton():
    case = make("tanh MLP")
    examination = wc.examine(case.model, loss=lambda m, b: case.loss_fn(m(b[0]), b[1]), data=case.data)
    assert list(examination.measurements.figures) == ["hessian"]
    assert any("loss_fn(output, target)" in note for note in examination.measurements.notes)
    with pytest.raises(ValueError, match="loss_fn"):
        wc.examine(case.model, loss=lambda m, b: m(b[0]).mean(), data=case.data, curvature="gauss-newton")


def test_gauss_newton_alone():
    examination = wc.examine(*wine_run(True), curvature="gauss-newton")
    assert set(examination.measurements.figures) == {"gauss_newton", "gauss_newton_preconditioned"}
    assert examination.measurements.edge is not None
    with pytest.raises(ValueError, match="curvature"):
        wc.examine(*wine_run(True, steps=1), curvature="fisher")


def test_a_loss_that_is_not_convex_is_noted():
    case = make("tanh MLP")
    examination = wc.examine(case.model, lambda o, t: -(o - t).square().mean(), case.data)
    assert any("not convex" in note for note in examination.measurements.notes)


def test_examining_leaves_no_trace():
    model, loss_fn, data, optimizer = wine_run(True)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    gradients = [p.grad.clone() for p in model.parameters()]
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    wc.examine(model, loss_fn, data, optimizer, quick=True)
    assert torch.equal(torch.rand(3), expected)
    for old, new in zip(before, (model.state_dict(), optimizer.state_dict()), strict=True):
        assert str(old) == str(new)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize(
    ("width", "batches", "rates", "options"),
    [
        (10, 1, 1, {}),  # the whole spectrum
        (10, 3, 1, {"quick": True}),
        (10, 3, 2, {"quick": True}),  # the edge ratio takes products of its own
        (4, 2, 2, {}),
        (100, 1, 1, {}),
        (10, 2, 1, {"quick": True, "curvature": "gauss-newton"}),
    ],
)
def test_progress_knows_its_end_and_is_told_of_every_product_and_batch(width, batches, rates, options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 3))
    data = [(torch.randn(60, 20), torch.randint(3, (60,))) for _ in range(batches)]
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1e-3 * rates}]
    optimizer, loss_fn, seen = torch.optim.Adam(groups), nn.CrossEntropyLoss(), []
    loss_fn(model(data[0][0]), data[0][1]).backward()
    optimizer.step()
    examination = wc.examine(model, loss_fn, data, optimizer, progress=lambda *told: seen.append(told), **options)
    products = examination.measurements.products
    assert {planned for _, _, planned in seen} == {products}
    done = [done for _, done, _ in seen]
    assert done == sorted(done)
    if options:
        assert len(set(done)) == batches * products + 1
    else:  # columns of a whole matrix share their passes over the batches
        assert products < len(set(done)) <= batches * products + 1
    assert done[-1] == products


def test_a_run_is_examined_as_its_parts_and_stands_alone():
    model, (X, y) = nn.Linear(3, 1), (torch.randn(30, 3), torch.randn(30, 1))
    run = wc.TrainingRun(model, nn.MSELoss(), (X, y), torch.optim.SGD(model.parameters(), lr=0.1))
    parts = wc.examine(run.model, run.loss_fn, run.data, run.optimizer)
    whole = wc.examine(run)
    assert [f.title for f in whole.findings] == [f.title for f in parts.findings]
    assert whole.measurements.loss == parts.measurements.loss
    with pytest.raises(TypeError, match="give the run alone"):
        wc.examine(run, nn.MSELoss())
    with wc.Monitor(run, every=1, overhead=None) as monitor:
        model(X).sum().backward()
        run.optimizer.step()
    assert [record.step for record in monitor.history] == [1]
    with pytest.raises(TypeError, match="give the run alone"):
        wc.Monitor(run, optimizer=run.optimizer)


def test_an_optimizer_of_named_parameters_is_examined():
    model, X, Y = nn.Linear(3, 1), torch.randn(9, 3), torch.randn(9, 1)
    optimizer = torch.optim.Adam(model.named_parameters(), lr=1e-2)
    nn.functional.mse_loss(model(X), Y).backward()
    optimizer.step()
    examination = wc.examine(model, nn.MSELoss(), (X, Y), optimizer, quick=True)
    (group,) = examination.measurements.optimizer.groups
    assert group["betas"] == (0.9, 0.999)
    assert "param_names" not in group


def test_progress_reaches_its_end_where_stages_take_fewer_products_or_fail():
    """A Krylov space of two dimensions is exhausted at once; the output is not one tensor."""
    torch.manual_seed(0)
    X, seen = torch.randn(2, 80), []
    model = nn.Linear(80, 1, bias=False)

    def loss(model, batch):
        return model(batch).square().mean()

    examination = wc.examine(model, loss=loss, data=X, quick=True, progress=lambda *told: seen.append(told))
    assert len({planned for _, _, planned in seen}) == 1
    assert seen[-1][1] == seen[-1][2] > examination.measurements.products


@pytest.mark.parametrize("rank", [1, 2, 400])
@pytest.mark.parametrize("samples", [4, 16])
def test_the_correlation_from_samples_contains_the_exact_one(samples, rank):
    """Over 30 seeds at 99.7 %; with few dominant directions all rows share their noise, which must not be taken off
    as if it were their own."""
    failures, widths = 0, []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        n = 400
        scale = torch.randn(n, dtype=torch.float64, generator=generator).exp()
        factors = torch.randn(n, rank, dtype=torch.float64, generator=generator) * scale[:, None]
        H = factors @ factors.T
        root_v = H.norm(dim=1) * torch.exp(0.5 * torch.randn(n, dtype=torch.float64, generator=generator))
        exact = row_norm_correlation(H.square().sum(1)[None], root_v).correlation.value
        directions = torch.randn(n, samples, dtype=torch.float64, generator=generator)
        directions /= directions.norm(dim=0)
        estimate = row_norm_correlation(n * (H @ directions).square().T, root_v).correlation
        failures += exact not in estimate
        widths.append(estimate.high - estimate.low)
    assert failures <= 1
    assert sum(widths) / 30 < (0.7 if samples == 4 else 0.1)


def test_the_correlation_is_undefined_where_there_is_nothing_to_correlate():
    rows, root_v = torch.rand(5, 6) + 0.1, torch.rand(6) + 0.1
    assert row_norm_correlation(rows, root_v).correlation.defined
    assert not row_norm_correlation(rows, torch.ones(6)).correlation.defined
    assert not row_norm_correlation(rows, torch.full((6,), torch.nan)).correlation.defined
    assert not row_norm_correlation(torch.zeros(5, 6), root_v).correlation.defined
    assert not row_norm_correlation(rows[:3], root_v).correlation.defined


@pytest.mark.parametrize("name", ["dropout", "convolution", "attention", "LSTM", "tied weights", "batch norm"])
def test_every_kind_of_network_can_be_examined(name):
    case = make(name)
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3)
    train(case, optimizer, 3)
    examination = wc.examine(case.model, case.loss_fn, case.data, optimizer)
    assert examination.measurements.figures["hessian_preconditioned"].largest.value > 0
    assert finding(examination, "learning_rate").evidence["edge_ratio"].value > 0


def test_the_first_layer_of_digits_as_the_readme_has_it():
    digits = load_digits()
    X = torch.tensor(digits.data).float()
    problem = wc.Problem(nn.Linear(64, 10), nn.CrossEntropyLoss(), (X, torch.tensor(digits.target)))
    (layer,) = wc.layer_conditioning(problem)
    assert layer.kappa.value == pytest.approx(2549.3, abs=0.1)
    assert layer.standardized.value == pytest.approx(12.07, abs=0.01)
    assert layer.constant == 3


def test_an_optimizer_whose_steps_are_of_no_preconditioner_is_left_out_and_said_so():
    torch.manual_seed(0)
    model, X, y = torch.nn.Linear(4, 3), torch.randn(30, 4), torch.randint(3, (30,))
    optimizer = torch.optim.Adam(model.parameters())
    wc.precondition(optimizer, wc.BatchNormPreconditioner(model))
    torch.nn.functional.cross_entropy(model(X), y).backward()
    optimizer.step()
    examination = wc.examine(model, torch.nn.CrossEntropyLoss(), (X, y), optimizer)
    assert examination.measurements.optimizer is None
    assert examination.measurements.edge is None
    assert any(f.key == "not_measured" and "no symmetric" in f.title for f in examination.findings)
