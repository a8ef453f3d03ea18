"""Curvature by PyHessian 0.1: the same numbers where it is right, and where it is not."""

from __future__ import annotations

import copy

import pytest
import torch

import wellcond as wc
from tests.cross_library.comparison import (
    MENDED,
    close,
    curvature_of,
    distance,
    library,
    quadratic,
    spectrum,
    split,
)
from tests.problems import PROBLEMS, batches_of, make
from tests.test_curvature import dense_twin

pyhessian = library("pyhessian")
pytestmark = pytest.mark.filterwarnings("ignore:Using backward:UserWarning")


def theirs(case, **data):
    # A copy: it leaves the network in eval mode and with other gradients.
    data = data or {"dataloader": batches_of(case)}
    return pyhessian.hessian(copy.deepcopy(case.model), case.loss_fn, cuda=False, **data)


def dense(computation):
    """By its product over all batches."""
    sizes = [p.numel() for p in computation.params]
    columns = []
    for row in torch.eye(sum(sizes), dtype=torch.float64):
        pieces = [piece.view_as(p) for piece, p in zip(row.split(sizes), computation.params, strict=True)]
        columns.append(torch.cat([piece.reshape(-1) for piece in computation.dataloader_hv_product(pieces)[1]]))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", PROBLEMS)
def test_dense_hessians_agree_in_eval_mode(name):
    case = make(name)
    assert close(dense(theirs(case)), curvature_of(case, "hessian", mode="eval").dense())


def test_both_weigh_batches_by_their_examples():
    case = split(make("convolution"), 20, 3, 1)
    whole = curvature_of(make("convolution"), "hessian").dense()
    assert close(dense(theirs(case)), whole)
    assert close(curvature_of(case, "hessian").dense(), whole)


def test_a_well_separated_largest_eigenvalue_agrees_to_its_tolerance():
    case = make("convolution")
    torch.manual_seed(0)
    (value,), _ = theirs(case, data=case.data).eigenvalues(tol=1e-10, maxIter=1000)
    ours = wc.eigenvalues(curvature_of(case, "hessian"), which="magnitude", tol=1e-8)
    # Its vectors are of length 1 − 1e-6.
    assert value == pytest.approx(float(ours.values[0]), rel=4e-6)


# -- where it is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "off"), [("batch norm", 1.0), ("dropout", 0.1)])
def test_what_is_measured_is_not_what_is_trained(name, off):
    case, truth = make(name), dense_twin(name)
    assert close(curvature_of(case, "hessian").dense(), truth)
    assert distance(dense(theirs(case)), truth) > off, MENDED


def test_measuring_leaves_the_network_in_eval_mode_and_changes_gradients():
    case = make("batch norm")
    parameter = next(case.model.parameters())
    parameter.grad = torch.ones_like(parameter)
    curvature_of(case, "hessian").dense()
    assert case.model.training
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    pyhessian.hessian(case.model, case.loss_fn, data=case.data, cuda=False)
    assert not case.model.training, MENDED
    assert not torch.equal(parameter.grad, torch.ones_like(parameter)), MENDED
    case.model.zero_grad()  # breaks the cycle of parameter and gradient that it left


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_power_iteration_stops_where_it_moves_slowly(seed):
    """At the same tolerance of 0.1 %: 2 % off without a word, in more products; here the error bound holds."""
    case = quadratic("uniform")  # 120 eigenvalues from 1 to 2
    torch.manual_seed(seed)
    (value,), _ = theirs(case, data=case.data).eigenvalues(tol=1e-3)
    assert 1.94 < value < 1.97, MENDED
    ours = wc.eigenvalues(curvature_of(case, "hessian"), tol=1e-3, seed=seed)
    assert ours.converged.all()
    assert abs(float(ours.values[0]) - 2) <= float(ours.error_bounds[0]) <= 2e-3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_negative_trace_is_always_that_of_two_samples(seed):
    """The change of the mean is divided by the mean itself, which is negative and so below any tolerance."""
    case = make("ReLU MLP")
    reward = copy.copy(case)
    reward.loss_fn = lambda output, target: -case.loss_fn(output, target)
    torch.manual_seed(seed)
    samples = theirs(reward, data=reward.data).trace(maxIter=100, tol=1e-12)
    assert len(samples) == 2, MENDED
    truth = float(spectrum(curvature_of(reward, "hessian").dense()).sum())
    assert truth < 0
    torch.manual_seed(seed)
    assert len(theirs(case, data=case.data).trace(maxIter=100, tol=1e-12)) == 100


def test_its_spectral_density_does_not_run_any_more():
    case = make("tanh MLP")
    with pytest.raises(RuntimeError, match="deprecated"):
        theirs(case, data=case.data).density(iter=5)
