"""The kinds of networks and losses that people train, examined whole: figures against a dense Hessian, a planted fault,
no trace."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch

import wellcond as wc
from tests.real import LOSSES, MODELS, dense_hessian, same, snapshot, taught, with_loss
from wellcond.report import page

SCHEMA = json.loads((Path(wc.__file__).parent / "examination" / "examination.schema.json").read_text())


def examined(run: wc.TrainingRun, **options) -> wc.results.Examination:
    """Without a trace, without a failure, in every form of the report."""
    before = snapshot(run)
    examination = wc.examine(run.model, run.loss_fn, run.data, run.optimizer, loss=run.loss, **options)
    assert same(before, snapshot(run))
    assert not [f.title for f in examination.findings if f.key == "not_measured"]
    jsonschema.validate(examination.to_json(), SCHEMA)
    text = page(examination)
    assert all(f'id="finding-{f.key}"' in text for f in examination.findings)
    return examination


def of(examination: wc.results.Examination, key: str) -> wc.results.Finding:
    return next(f for f in examination.findings if f.key == key)


def model(name: str, large: bool = False) -> wc.TrainingRun:
    torch.manual_seed(0)
    return taught(MODELS[name][large]())


def check_against(H: torch.Tensor, m: wc.examination.Measurements) -> None:
    """The figures are those of the dense matrix, up to the rounding of its dtype."""
    values, c = torch.linalg.eigvalsh(H.double()), m.figures["hessian"]
    slack = 1e3 * torch.finfo(H.dtype).eps * float(values[-1])
    assert c.largest.low - slack <= float(values[-1]) <= c.largest.high + slack
    assert c.smallest.low - slack <= float(values[0]) <= c.smallest.high + slack
    mean = float(len(values) * values[-1] / values.abs().sum())
    assert c.kappa_mean.value == pytest.approx(mean, rel=1e5 * torch.finfo(H.dtype).eps)


@pytest.mark.parametrize("name", MODELS)
def test_a_thorough_examination_of_a_small_one_is_that_of_its_dense_hessian(name):
    run = model(name)
    m = examined(run).measurements
    assert m.dtype == "float64"
    assert m.parameters == sum(p.numel() for p in run.model.parameters()) < 700
    check_against(dense_hessian(run), m)
    assert m.forecast is not None
    assert m.layers


@pytest.mark.parametrize("name", MODELS)
def test_a_rate_100_times_too_large_is_severe_and_the_given_one_is_not(name):
    """Of more than 2,000 parameters, in float32, from samples."""
    run = model(name, large=True)
    healthy = examined(run, quick=True)
    assert healthy.measurements.parameters > 2000
    assert healthy.measurements.dtype == "float32"
    assert of(healthy, "learning_rate").severity is not wc.results.Severity.SEVERE
    assert healthy.severity is not wc.results.Severity.SEVERE
    for group in run.optimizer.param_groups:
        group["lr"] *= 100
    spoilt = examined(run, quick=True)
    found, before = of(spoilt, "learning_rate"), of(healthy, "learning_rate")
    assert found.severity is wc.results.Severity.SEVERE
    ratio = found.evidence["edge_ratio"].value / before.evidence["edge_ratio"].value
    assert ratio == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_of_model_and_batch(name):
    run = with_loss(name)
    examination = examined(run)
    m = examination.measurements
    assert m.preconditioned
    assert m.figures["hessian_preconditioned"].largest.value > 0
    assert of(examination, "learning_rate").evidence["edge_ratio"].value > 0
    if name == "draws in the forward pass":
        again = examined(run).measurements
        assert again.figures["hessian"].largest == m.figures["hessian"].largest
        assert wc.examine(run.model, loss=run.loss, data=run.data, seed=1).measurements.loss != m.loss
    else:
        check_against(dense_hessian(run, getattr(torch, m.dtype)), m)
