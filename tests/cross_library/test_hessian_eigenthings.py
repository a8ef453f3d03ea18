"""Curvature by hessian-eigenthings 1.0.0a5: the same numbers where it is right, and where it is not."""

from __future__ import annotations

import pytest
import torch

import wellcond as wc
from tests.cross_library.comparison import (
    MENDED,
    buffers,
    close,
    curvature_of,
    distance,
    library,
    quadratic,
    second_moment,
    spectrum,
    split,
    unchanged,
)
from tests.problems import PROBLEMS, batches_of, make, train
from tests.test_curvature import dense_twin

eigenthings = library("hessian_eigenthings")

KINDS = ("hessian", "gauss-newton")
AGREE = [
    (name, kind)
    for name in PROBLEMS
    for kind in KINDS
    if name not in ("dropout", "uneven batches") and (name, kind) != ("batch norm", "gauss-newton")
]


def theirs(case, kind, **options):
    data = batches_of(case)
    if kind == "hessian":
        return eigenthings.HessianOperator(case.model, data, eigenthings.supervised_loss(case.loss_fn), **options)
    if kind == "empirical fisher":
        loss = eigenthings.supervised_per_sample_loss(case.loss_fn)
        return eigenthings.EmpiricalFisherOperator(case.model, data, loss)
    loss = eigenthings.supervised_loss_of_output(case.loss_fn)
    return eigenthings.GGNOperator(case.model, data, eigenthings.supervised_forward, loss)


def dense(operator):
    return torch.stack([operator.matvec(row) for row in torch.eye(operator.size, dtype=torch.float64)], 1).detach()


@pytest.mark.parametrize(("name", "kind"), AGREE)
def test_dense_matrices_agree(name, kind):
    case = make(name)
    assert close(dense(theirs(case, kind)), curvature_of(case, kind).dense())


@pytest.mark.parametrize("name", [n for n in PROBLEMS if n not in ("batch norm", "dropout", "LSTM", "uneven batches")])
def test_empirical_fisher_matrices_agree(name):  # an LSTM they can't vmap
    case = make(name)
    ours = curvature_of(case, "empirical fisher").dense()
    assert close(ours, second_moment(case))
    assert close(dense(theirs(case, "empirical fisher")), ours)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_one_size_agree(kind):
    case = split(make("convolution"), 8, 8, 8)
    assert close(dense(theirs(case, kind)), curvature_of(case, kind).dense())


@pytest.mark.parametrize("name", ["tanh MLP", "ReLU MLP", "convolution", "tied weights"])
def test_largest_eigenvalues_agree_where_theirs_is_given_the_whole_space(name):
    case = make(name)
    ours = wc.eigenvalues(curvature_of(case, "hessian"), k=3, which="magnitude", tol=1e-10)
    operator = theirs(case, "hessian")
    found = eigenthings.lanczos(operator, k=3, max_iter=operator.size, reorthogonalize=True, seed=0)
    assert torch.allclose(ours.values, found.eigenvalues, rtol=1e-9)
    value, _, residual, _, converged = eigenthings.power_iteration_one(operator, max_iter=500, seed=0)
    assert converged
    assert abs(value - float(ours.values[0])) <= residual + float(ours.error_bounds[0])


@pytest.mark.parametrize("kind", KINDS)
def test_traces_agree_where_hutchpp_sees_the_whole_space(kind):
    case = make("tanh MLP")
    operator, matrix = theirs(case, kind), curvature_of(case, kind).dense()
    found = eigenthings.trace(operator, num_matvecs=3 * operator.size, method="hutch++", seed=0)
    assert found.estimate == pytest.approx(float(matrix.trace()), rel=1e-9)


# -- where it is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_uneven_size_are_weighted_alike(kind):
    """The mean over batches, not over examples: of another loss than the whole data's."""
    case = split(make("convolution"), 20, 3, 1)
    truth = curvature_of(make("convolution"), kind).dense()
    assert close(curvature_of(case, kind).dense(), truth)
    them = dense(theirs(case, kind))
    assert distance(them, truth) > 0.15, MENDED
    assert close(them, curvature_of(case, kind, weight=lambda batch: 1.0).dense())
    largest, right = float(spectrum(them)[0]), float(spectrum(truth)[0])
    assert largest > 1.08 * right, MENDED


def test_microbatches_of_uneven_size_too():
    case, truth = make("softmax regression"), dense_twin("softmax regression")
    assert close(curvature_of(split(make("softmax regression"), 10, 10, 4), "hessian").dense(), truth)
    assert distance(dense(theirs(case, "hessian", microbatch_size=10)), truth) == pytest.approx(0.184, abs=1e-3), MENDED


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lanczos_for_one_eigenvalue_stops_after_two_products(seed):
    case = quadratic("planted spike")  # 119 eigenvalues from 0 to 1, and 1.5
    found = eigenthings.lanczos(theirs(case, "hessian"), k=1, seed=seed)
    assert found.iterations == 2, MENDED
    assert 0.8 < float(found.eigenvalues[0]) < 0.84, MENDED
    ours = wc.eigenvalues(curvature_of(case, "hessian"), k=1, seed=seed)
    assert ours.products <= 20
    assert abs(float(ours.values[0]) - 1.5) <= float(ours.error_bounds[0]) < 1e-3


def test_and_may_call_it_converged():
    case = quadratic("planted spike")
    largest = []
    for seed in range(40):
        found = eigenthings.lanczos(theirs(case, "hessian"), k=1, tol=0.3, seed=seed)
        largest += [float(x) for x, known in zip(found.eigenvalues, found.converged, strict=True) if known]
    # Asked for 30 %, they are 41 to 51 % off. A residual says that some eigenvalue is near, not that it is the largest.
    assert largest, MENDED
    assert max(largest) < 0.6 * 1.5, MENDED
    ours = wc.eigenvalues(curvature_of(case, "hessian"), k=1, tol=0.3)
    assert ours.largest().low <= 1.5 <= ours.largest().high


def test_a_longer_lanczos_run_lists_one_eigenvalue_five_times():
    """Above 50 steps the basis is not kept orthogonal: copies of the largest eigenvalue appear."""
    case = make("ReLU MLP")
    train(case, torch.optim.Adam(case.model.parameters(), lr=1e-2), 50)
    H = curvature_of(case, "hessian")
    truth = spectrum(H.dense())[:5]
    found = eigenthings.lanczos(theirs(case, "hessian"), k=5, max_iter=60, seed=0)
    assert found.converged.all()
    assert torch.allclose(found.eigenvalues, truth[0].expand(5), rtol=1e-8), MENDED
    assert float(truth[1]) < 0.7 * float(truth[0])
    ours = wc.eigenvalues(H, k=5, tol=1e-8)
    assert torch.allclose(ours.values, truth, rtol=1e-9)


def test_dropout_is_another_network_in_every_product():
    case = make("dropout")
    operator, v = theirs(case, "hessian"), torch.ones(75, dtype=torch.float64)
    torch.manual_seed(0)
    assert distance(operator.matvec(v), operator.matvec(v)) > 0.1, MENDED
    H = curvature_of(case, "hessian")
    assert torch.equal(H @ v, H @ v)
    assert close(H.dense(), dense_twin("dropout"))


def test_measuring_changes_the_statistics_of_batch_norm():
    case = make("batch norm")
    before = buffers(case.model)
    curvature_of(case, "hessian").dense()
    assert unchanged(case.model, before)
    theirs(case, "hessian").matvec(torch.ones(63, dtype=torch.float64))
    assert not unchanged(case.model, before), MENDED
    with pytest.raises(RuntimeError, match="in-place operation"):
        theirs(case, "gauss-newton").matvec(torch.ones(63, dtype=torch.float64))


def test_gauss_newton_products_hold_their_graphs():
    """A Lanczos run on them keeps every step's graph in memory."""
    case = make("convolution")
    v = torch.ones(96, dtype=torch.float64)
    assert not (curvature_of(case, "gauss-newton") @ v).requires_grad
    assert theirs(case, "gauss-newton").matvec(v).requires_grad, MENDED
