"""Curvature by curvlinops 3.0.1: the same numbers where it is right, and where it is not."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch.func import grad, jacrev, jvp

import wellcond as wc
from tests.cross_library.comparison import (
    MENDED,
    buffers,
    close,
    curvature_of,
    distance,
    library,
    second_moment,
    spectrum,
    split,
    unchanged,
)
from tests.problems import PROBLEMS, batches_of, make
from tests.test_curvature import dense_twin

curvlinops = library("curvlinops")

RANDOM = {"batch norm", "dropout"}  # refused, below
KINDS = ("hessian", "gauss-newton")
OPERATORS = {
    "hessian": curvlinops.HessianLinearOperator,
    "gauss-newton": curvlinops.GGNLinearOperator,
    "empirical fisher": curvlinops.EFLinearOperator,
}
AGREE = [
    (name, kind)
    for name in PROBLEMS
    for kind in KINDS
    if name not in RANDOM and (name, kind) != ("layer norm", "hessian")
]


def theirs(case, kind):
    return OPERATORS[kind](case.model, case.loss_fn, list(case.model.parameters()), batches_of(case))


def dense(operator):
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize(("name", "kind"), AGREE)
def test_dense_matrices_and_products_agree(name, kind):
    case = make(name)
    ours, operator = curvature_of(case, kind), theirs(case, kind)
    matrix = ours.dense()
    assert close(dense(operator), matrix)
    v = torch.randn(ours.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert close(operator @ v, ours @ v)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(8, 8, 8), (10, 10, 4), (1, 22, 1)])
def test_both_weigh_batches_by_their_examples(kind, sizes):
    case = split(make("convolution"), *sizes)
    whole = curvature_of(make("convolution"), kind).dense()
    assert close(dense(theirs(case, kind)), whole)
    assert close(curvature_of(case, kind).dense(), whole)


@pytest.mark.parametrize("name", [n for n in PROBLEMS if n not in RANDOM])
def test_empirical_fisher_matrices_agree_up_to_what_an_example_is(name):
    """Of a squared error with C outputs they take each output for an example: C times the matrix of ours."""
    case = make(name)
    ours, truth = curvature_of(case, "empirical fisher").dense(), second_moment(case)
    assert close(ours, truth)
    outputs = batches_of(case)[0][1].shape[-1] if isinstance(case.loss_fn, torch.nn.MSELoss) else 1
    assert close(dense(theirs(case, "empirical fisher")), outputs * truth)


def test_batch_norm_agrees_in_eval_mode():
    case = make("batch norm")
    case.model.eval()
    for kind in KINDS:
        assert close(dense(theirs(case, kind)), curvature_of(case, kind, mode="eval").dense())


def test_a_sum_over_examples_is_theirs_and_a_mean_of_batch_losses_ours():
    # With reduction="sum" they add the batches up; a Problem takes the mean of what loss_fn says of each batch.
    case = split(make("softmax regression"), 10, 10, 4)
    case.loss_fn.reduction = "sum"
    assert close(dense(theirs(case, "hessian")), 3 * curvature_of(case, "hessian", weight=lambda batch: 1.0).dense())


@pytest.mark.parametrize("name", ["convolution", "LSTM", "tied weights", "uneven batches"])
def test_extreme_eigenvalues_agree_with_arpack_on_theirs(name):
    case = make(name)
    ours = wc.eigenvalues(curvature_of(case, "hessian"), k=3, which="both", tol=1e-10)
    scipy = theirs(case, "hessian").to_scipy()
    ends = [eigsh(scipy, k=3, which=end, return_eigenvectors=False, tol=1e-12) for end in ("LA", "SA")]
    expected = torch.cat(
        [torch.tensor(ends[0].copy()).sort(descending=True)[0], torch.tensor(ends[1].copy()).sort()[0]]
    )
    assert torch.allclose(ours.values, expected, rtol=1e-9)


def test_traces_agree_where_hutchpp_sees_the_whole_range():
    case = make("LSTM")  # Gauss-Newton has rank 24 at most: 12 examples, 2 outputs
    torch.manual_seed(0)
    trace = float(curvlinops.hutchpp_trace(theirs(case, "gauss-newton"), num_matvecs=90))
    G = curvature_of(case, "gauss-newton")
    assert trace == pytest.approx(float(G.dense().trace()), rel=1e-10)
    # κ̄ = n·λ_max/tr G, from 80 products and 32 samples: its interval holds their trace.
    sampled = wc.conditioning(G, dense_limit=0)
    kappa = G.size * float(spectrum(G.dense())[0]) / trace
    assert sampled.kappa_mean.low <= kappa <= sampled.kappa_mean.high


# -- where it is wrong, or refuses ------------------------------------------------------------------------------------


def test_their_hessian_is_wrong_under_layer_norm():
    case, truth = make("layer norm"), dense_twin("layer norm")
    ours, them = curvature_of(case, "hessian").dense(), dense(theirs(case, "hessian"))
    assert close(ours, truth)
    assert distance(them, truth) == pytest.approx(0.0901, abs=1e-4), MENDED
    # What is wrong are the rows of the normalization's weight, by the layer below; its columns are right.
    wrong = (them - truth).abs() > 1e-10
    assert wrong.any(1).nonzero().flatten().tolist() == list(range(30, 36)), MENDED
    assert wrong.any(0).nonzero().flatten().tolist() == list(range(30)), MENDED
    assert distance(them, them.T) == pytest.approx(0.0901, abs=1e-4), MENDED
    assert close(spectrum(ours), spectrum(truth))
    assert float(spectrum(them)[-1] / spectrum(truth)[-1]) == pytest.approx(1 - 1.1e-3, abs=1e-4), MENDED


def test_because_torch_differentiates_a_vmapped_layer_norm_wrongly():
    """They take forward derivatives of `jacrev`, whose backward pass is vmapped; of `grad` they are right."""
    generator = torch.Generator().manual_seed(0)
    x, weight, direction = (torch.randn(*s, dtype=torch.float64, generator=generator) for s in ((9, 4), (4,), (9, 4)))

    def loss(x, weight):
        return torch.nn.functional.layer_norm(x, (4,), weight).tanh().square().sum()

    tangents = direction, torch.zeros(4, dtype=torch.float64)
    right, wrong = (jvp(f(loss, argnums=(0, 1)), (x, weight), tangents)[1] for f in (grad, jacrev))
    step = 1e-5
    ends = [grad(loss, argnums=1)(x + sign * step * direction, weight) for sign in (1, -1)]
    assert close(right[1], (ends[0] - ends[1]) / (2 * step), digits=7)
    assert close(right[0], wrong[0])
    assert distance(wrong[1], right[1]) > 0.05, MENDED


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_in_train_mode_is_refused_after_its_statistics_are_changed(kind):
    case = make("batch norm")
    before = buffers(case.model)
    curvature_of(case, kind).dense()
    assert unchanged(case.model, before)
    with pytest.raises(RuntimeError, match="in-place operation"):
        theirs(case, kind)
    assert not unchanged(case.model, before), MENDED


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_refused(kind):
    case = make("dropout")
    assert torch.equal(curvature_of(case, kind).dense(), curvature_of(case, kind).dense())
    with pytest.raises(RuntimeError, match="deterministic"):
        theirs(case, kind)
