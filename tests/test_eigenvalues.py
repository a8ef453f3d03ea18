"""`eigenvalues` against dense answers in float64: no bound broken, no more missed than stated, in bounded memory."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.problems import random_spectrum
from wellcond.linalg import Eigenvalues, Lanczos, MatrixOperator, Quadrature, RandomDirections, eigenvalues
from wellcond.linalg.missed import MissedBound
from wellcond.linalg.targets import Claim, Targets

WHICH = ("largest", "smallest", "both", "magnitude")
FAMILIES = ("clustered at the top", "repeated", "graded", "indefinite", "planted spike")
EMPTY = torch.empty(0, dtype=torch.float64)


class DiagonalPreconditioner(MatrixOperator):
    """diag(values) by products that cost nothing; Lanczos doesn't know that its eigenvectors are simple."""

    def __init__(self, values: torch.Tensor):
        super().__init__(torch.empty(0, 0, dtype=values.dtype))
        self.size, self.values = len(values), values

    def _multiply(self, v: torch.Tensor) -> torch.Tensor:
        return self.values * v


def spectrum_of(family: str, generator: torch.Generator, n: int) -> torch.Tensor:
    def uniform(count: int) -> torch.Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64)

    def log_uniform(low: float, high: float) -> float:
        return 10 ** (low + (high - low) * float(uniform(1)))

    if family == "clustered at the top":
        count = 3 + int(17 * uniform(1))
        return torch.cat([uniform(n - count), 1 + 2 * uniform(1) - log_uniform(-4, -1) * uniform(count)])
    if family == "repeated":
        return torch.cat([uniform(n - 14), (1 + uniform(4)).repeat_interleave(torch.tensor([2, 3, 4, 5]))])
    if family == "graded":
        return 10 ** (-(2 + 8 * uniform(1)) * torch.linspace(0, 1, n, dtype=torch.float64))
    if family == "indefinite":
        return torch.cat([2 * uniform(n // 2) - 1, -(10 ** (-4 * uniform(n - n // 2))) * (1 + uniform(1))])
    return torch.cat([uniform(n - 1), torch.tensor([1 + log_uniform(-2, 0)], dtype=torch.float64)])


def dense_answer(values: torch.Tensor, k: int, which: str) -> torch.Tensor:
    """`values` rises."""
    if which == "largest":
        return values.flip(0)[:k]
    if which == "smallest":
        return values[:k]
    if which == "magnitude":
        return values[values.abs().argsort(descending=True)][:k]
    return torch.cat([values.flip(0)[:k], values[:k]])


def missed(e: Eigenvalues, values: torch.Tensor, k: int, which: str, tol: float) -> torch.Tensor:
    """Which of the values have an eigenvalue beyond them by more than what the docstring allows, (k,)."""
    answer = dense_answer(values, k, which)
    beyond = (answer - e.values).abs() if which != "magnitude" else answer.abs() - e.values.abs()
    allowed = e.error_bounds.clamp_min(tol * float(values.abs().max())) + e.rounding
    return beyond > allowed


def test_two_hundred_random_spectra_break_no_bound_and_hide_no_more_than_stated():
    """Both statements, for every `which` and k up to 50, every other spectrum with a small basis.

    A bound must never be broken. Of 800 runs at the default 99.7 %, by the definition of `missed`, no more than
    800 × 0.003 = 2.4 should miss something while stating that all is found; by chance more than 8 with a probability
    under 0.2 % (Poisson). The same for `lower` and `upper`. Runs that state less are free to miss, but few may run
    out of products: those are the lower ends of graded spectra, in a small basis.
    """
    generator = torch.Generator().manual_seed(7)
    wrong, outside, unsure = 0, 0, 0
    for trial in range(200):
        family, n = FAMILIES[trial % 5], int(torch.randint(100, 200, (1,), generator=generator))
        A = MatrixOperator(random_spectrum(spectrum_of(family, generator, n), trial))
        values = torch.linalg.eigvalsh(A.matrix)
        slack = 1e-13 * float(values.abs().max())
        for i, which in enumerate(WHICH):
            k = (1, 2, 5, 10, 50)[(trial // 5 + i) % 5] if trial % 10 < 5 else (1, 3, 7)[(trial // 5 + i) % 3]
            count = 2 * k if which == "both" else k
            small = min(2 * count + 20, n) if trial % 10 < 5 else None
            e = eigenvalues(A, k, which, seed=trial, max_basis=small, max_products=600)
            nearest = (values[:, None] - e.values).abs().min(0).values
            assert (nearest <= e.error_bounds + slack).all(), (family, trial, which, k)
            found = e.missed <= 0.003
            wrong += bool((missed(e, values, k, which, 1e-3) & found).any())
            unsure += not bool(found.all() and e.converged.all())
            outside += not (e.lower - slack <= values[0] and values[-1] <= e.upper + slack)
    assert wrong <= 8
    assert outside <= 8
    assert unsure <= 10


@pytest.mark.parametrize(
    ("tail", "k", "options"),
    [
        ([1.02], 1, {"verify": False, "tol": 0.05}),
        ([1.3, 1.5], 1, {"min_products": 6, "max_products": 6}),
        ([1.1, 1.1, 1.2, 1.2], 4, {"confidence": 0.5, "tol": 0.02}),
    ],
    ids=["stopped by a residual", "stopped early", "half sure"],
)
def test_missed_is_a_p_value(tail, k, options):
    """Of 300 starts, those that miss an eigenvalue and state at most p are at most a share p, for every p: within
    three standard deviations of a binomial of that probability."""
    bulk = torch.linspace(0, 1, 400 - len(tail), dtype=torch.float64)
    values = torch.cat([bulk, torch.tensor(tail, dtype=torch.float64)])
    A, runs = DiagonalPreconditioner(values), 300
    stated, wrong = torch.empty(runs, k), torch.empty(runs, k, dtype=torch.bool)
    for seed in range(runs):
        e = eigenvalues(A, k, seed=seed, **options)
        stated[seed], wrong[seed] = e.missed, missed(e, values, k, "largest", options.get("tol", 1e-3))
    for p in (0.01, 0.1, 0.3, 0.5, 0.9):
        failures = int((wrong & (stated <= p)).any(1).sum())
        assert failures <= runs * p + 3 * math.sqrt(runs * p * (1 - p)), p
    assert (stated < 1).any()
    if k == 1:
        assert wrong.any()  # else nothing was tested


def test_an_eigenvector_with_no_share_in_the_start_is_not_declared_absent():
    """The start knows almost nothing of the largest eigenvalue, and the residual of the second largest is small: the
    probability stated must be the one of such a start."""
    values = torch.cat([torch.linspace(0, 1, 99, dtype=torch.float64), torch.tensor([1.5], dtype=torch.float64)])
    start = torch.ones(100, dtype=torch.float64)
    for share in (1e-2, 1e-4, 1e-6):
        start[-1] = share
        run = Lanczos(DiagonalPreconditioner(values), start, capacity=30)
        for _ in range(40):
            run.extend(1)
            top = float(run.ritz()[0][-1])
            if top > 1.1:
                break
            # Were the bound of the squared component smaller than the component is, it would be wrong.
            assert run.missed[0].amplification(1.5) <= (1 + 1e-9) * 100 / share**2
        assert top > 1.1


def test_amplification_is_the_christoffel_function_and_survives_a_restart():
    """1/K(x) is the most mass at x that the moments allow: without restart the Gauss-Radau weight of a node at x;
    and with one, never less than the mass that is there."""
    values = torch.linspace(-1, 1, 80, dtype=torch.float64) ** 3
    A = DiagonalPreconditioner(values)
    v = RandomDirections(80, A.dtype, A.device, 3).draw()
    run = Lanczos(A, v).extend(9)
    for x, end in ((1.1, 1), (1.6, 1), (-1.05, -1)):
        nodes, weights = Quadrature.of(run).with_node(torch.tensor([x], dtype=torch.float64))
        expected = float(weights[0, (nodes[0] - x).abs().argmin()])
        assert 1 / run.missed[0].amplification(x, end) == pytest.approx(expected, rel=1e-8)
    assert run.missed[0].amplification(0.0) == 0.0  # not beyond the Ritz values: nothing is known
    spiked = DiagonalPreconditioner(torch.cat([values, torch.tensor([1.2], dtype=torch.float64)]))
    start = torch.cat([v, torch.tensor([1e-5], dtype=torch.float64)])
    restarted = Lanczos(spiked, start, capacity=12)
    grown = []
    while float(restarted.ritz()[0][-1] if restarted.steps else 0) < 1.1:
        if restarted.full:
            restarted.thick_restart(Targets("largest", 1, 81), 5)
        restarted.extend(1)
        grown.append(restarted.missed[0].amplification(1.2))
        if grown[-1]:
            assert grown[-1] <= 1.0001e10
    assert len(grown) > 13
    assert max(grown) > 1e8  # near what a component of 1e-5 allows: the bound is sharp


def test_claims_about_a_compression_hold_for_the_whole():
    """`inside`: with the complement's eigenvalues at most y, the claim about A is true, and barely so."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        theta = torch.rand(3, generator=generator, dtype=torch.float64).sort(descending=True).values
        r = 0.3 * torch.rand(3, generator=generator, dtype=torch.float64)
        for position in (0, 1, 2, 3):
            x = float(theta[min(position, 2)]) + 0.2
            y = MissedBound(5, 1.0, theta, r).inside(Claim(1, position, x))
            assert y is not None
            # The worst coupling: all residuals along the complement's top eigenvector.
            arrow = torch.diag(torch.cat([theta, torch.tensor([y], dtype=torch.float64)]))
            arrow[-1, :-1] = arrow[:-1, -1] = r
            assert int((torch.linalg.eigvalsh(arrow) > x + 1e-12).sum()) <= position
    assert MissedBound(5, 1.0, theta, r).inside(Claim(1, 4, 9.0)) is None
    assert MissedBound(5, 1.0, theta, r).inside(Claim(1, 0, float(theta[1]))) is None


@pytest.mark.parametrize("copies", [2, 3, 4, 5])
@pytest.mark.parametrize("which", ["largest", "both", "magnitude"])
def test_repeated_eigenvalues_are_found_with_their_multiplicity(copies, which):
    bulk = torch.linspace(-1, 1, 300, dtype=torch.float64)
    values = torch.cat([bulk, torch.tensor([2.0] * copies + [1.5, -3.0, -3.0], dtype=torch.float64)])
    k = copies + 1 if which != "magnitude" else copies + 3
    e = eigenvalues(DiagonalPreconditioner(values), k, which, tol=1e-4, max_basis=60)
    assert torch.allclose(e.values, dense_answer(values.sort().values, k, which), atol=1e-3)
    assert e.converged.all()
    assert e.missed.max() <= 0.003
    V = e.vectors
    assert (V.T @ V - torch.eye(V.shape[1], dtype=torch.float64)).abs().max() < 1e-12
    residuals = (values[:, None] * V - V * e.values).norm(dim=0)
    assert (residuals <= e.error_bounds).all()
    # One Krylov space has one vector of each (until rounding brings in others), and claims no more.
    once = eigenvalues(DiagonalPreconditioner(values), k, which, tol=1e-1, verify=False)
    assert int((once.values > 1.9).sum()) == 1
    assert once.missed[1:k].min() == 1.0


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("k", [1, 4, 25])
def test_a_small_basis_gives_the_same_answer(which, k):
    values = torch.randn(800, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
    A = DiagonalPreconditioner(values)
    count = 2 * k if which == "both" else k
    small = eigenvalues(A, k, which, tol=1e-6, max_basis=2 * count + 8, max_products=4000)
    large = eigenvalues(A, k, which, tol=1e-6, max_basis=800, max_products=4000)
    assert small.run.dimension <= 2 * count + 8
    assert small.run.steps > small.run.dimension
    answer = dense_answer(values.sort().values, k, which)
    scale = float(values.abs().max())
    for e in (small, large):
        assert (e.values - answer).abs().max() <= 1e-6 * scale
        assert e.converged.all()
        assert e.missed.max() <= 0.003


class PeakVectors(TorchDispatchMode):
    """The most memory in tensors alive at once, as far as operations made them, in vectors of length n."""

    def __init__(self, n: int):
        super().__init__()
        self.n, self.sizes, self.peak = n, {}, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.numel() >= self.n // 2:
                storage = x.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.sizes.values()) / self.n / 8)
        return out


@pytest.mark.parametrize("which", ["largest", "both"])
def test_memory_is_bounded(which):
    n = 200_000
    values = torch.rand(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    values[:2] = 1.1  # repeated: the search for more of them must fit as well
    counter = PeakVectors(n)
    with counter:
        e = eigenvalues(DiagonalPreconditioner(values), 2, which, tol=1e-2, max_basis=24, max_products=150)
    assert e.run.steps > 40
    count = len(e.values)
    assert 24 < counter.peak <= 24 + count + 4 + 16
    assert e.run._basis.untyped_storage().nbytes() == 25 * n * 8


# -- a user's start --------------------------------------------------------------------------------------------------


def turned(A: torch.Tensor, angle: float, seed: int) -> torch.Tensor:
    """A nearby matrix: A in a basis that is turned a little."""
    n = len(A)
    S = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    Q = torch.linalg.matrix_exp(angle * (S - S.T) / math.sqrt(n))
    return Q @ A @ Q.T


@pytest.fixture(scope="module")
def network_like() -> torch.Tensor:
    bulk = 0.3 * torch.rand(390, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return random_spectrum(torch.cat([bulk, 1.4 ** torch.arange(-2, 8, dtype=torch.float64)]), 11)


@pytest.mark.parametrize("k", [1, 4])
def test_the_last_eigenvectors_save_products(network_like, k):
    near, spent, sure = MatrixOperator(turned(network_like, 0.005, 5)), [0, 0], [0, 0]
    for seed in range(8):
        last = eigenvalues(MatrixOperator(network_like), k, seed=seed).vectors
        for i, start in enumerate((None, last if k > 1 else last[:, 0])):
            cheap = eigenvalues(near, k, start=start, verify=False, seed=seed)
            spent[i] += cheap.products
            e = eigenvalues(near, k, start=start, seed=seed)
            sure[i] += e.products
            answer = torch.linalg.eigvalsh(near.matrix).flip(0)[:k]
            assert (e.values - answer).abs().max() <= 1e-3 * answer[0]
    assert spent[1] <= 0.85 * spent[0]
    assert sure[1] <= 1.1 * sure[0]  # what verification takes rests on the random part


def test_a_bad_guess_hides_nothing(network_like):
    """A start at the eigenvector of a small eigenvalue, one orthogonal to the answer, and two that cancel."""
    values, V = torch.linalg.eigh(network_like)
    A = MatrixOperator(network_like)
    random = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    orthogonal = random - V[:, -3:] @ (V[:, -3:].T @ random)
    opposite = torch.stack([V[:, 5], -V[:, 5]], 1)
    for start in (V[:, 0], orthogonal, opposite, 1e-200 * V[:, 0], V[:, :3]):
        for k in (1, 3):
            e = eigenvalues(A, k, start=start)
            assert torch.allclose(e.values, values.flip(0)[:k], rtol=1e-3)
            assert e.missed.max() <= 0.003
    # Stopped by the residual alone, the guess is believed, and the statement says what that is worth.
    believed = eigenvalues(A, start=V[:, 0], verify=False, tol=0.2)
    assert float(believed.values[0]) < 0.95 * float(values[-1])
    assert float(believed.missed[0]) > 0.1


def test_a_guess_is_mixed_with_a_direction_of_its_own(network_like):
    """A guess from a run with the same seed depends on that seed's directions; the mixed-in one must not."""
    A = MatrixOperator(network_like)
    first = RandomDirections(400, A.dtype, A.device, 0).draw()
    e = eigenvalues(A, start=first, min_products=2, max_products=2)
    assert abs(float(e.run.basis[0] @ first)) < 1 - 1e-4
    again = eigenvalues(A, start=first, min_products=2, max_products=2)
    assert torch.equal(e.values, again.values)
    assert not torch.equal(e.values, eigenvalues(A, start=first, seed=1, min_products=2, max_products=2).values)


# -- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_basis": 4}, "max_basis"),
        ({"k": 3, "max_basis": 8}, "max_basis"),
        ({"k": 5, "which": "both", "max_products": 9}, "max_products"),
        ({"start": torch.ones(29)}, "start"),
        ({"start": torch.ones(3, 30)}, "start"),
        ({"start": torch.ones(30, 2, 1)}, "start"),
        ({"start": torch.ones(30, 0)}, "start"),
        ({"start": torch.ones(30, dtype=torch.float64)}, "float32"),
        ({"start": torch.zeros(30)}, "zero"),
        ({"start": torch.stack([torch.ones(30), torch.zeros(30)], 1)}, "zero"),
        ({"start": torch.full((30,), math.nan)}, "finite"),
        ({"start": torch.full((30,), math.inf)}, "finite"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        eigenvalues(MatrixOperator(torch.eye(30)), **arguments)


@pytest.mark.parametrize("basis", [None, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_bounds_include_rounding(family, basis):
    generator = torch.Generator().manual_seed(3)
    for seed in range(4):
        exact = random_spectrum(spectrum_of(family, generator, 200), seed).float()
        values = torch.linalg.eigvalsh(exact.double())
        e = eigenvalues(MatrixOperator(exact), 3, "both", tol=1e-5, seed=seed, max_basis=basis, max_products=400)
        assert ((values[:, None] - e.values).abs().min(0).values <= e.error_bounds).all()
        assert not (missed(e, values, 3, "both", 1e-5) & (e.missed <= 0.003)).any()
        V = e.vectors.double()
        assert (V.T @ V - torch.eye(6, dtype=torch.float64)).abs().max() < 2e-5


def test_a_run_that_fits_in_memory_stays_plain_lanczos():
    """What the spectrum's other figures rely on: one space, from one uniformly random direction."""
    values = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = DiagonalPreconditioner(values)
    e = eigenvalues(A, 5, "both", min_products=120, max_products=120, seed=4)
    start = RandomDirections(500, A.dtype, A.device, 4).draw()
    assert e.run.steps == e.run.dimension == e.products == 120
    assert torch.allclose(e.run.basis[0], start, atol=1e-15)
    T = e.run.tridiagonal()
    assert T.triu(2).abs().max() == 0
    assert (e.run.basis @ (values[:, None] * e.run.basis.T) - T).abs().max() < 1e-12
    assert torch.allclose(e.run.product_of_start(), values * start, atol=1e-14)


def test_one_eigenvalue_takes_few_products_though_verified():
    """A spectrum like a network's: a few outliers, a dense bulk, 100,000 dimensions."""
    bulk = 0.01 * torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bulk[:5] = torch.tensor([1.0, 0.7, 0.5, 0.3, 0.2], dtype=torch.float64)
    for seed in range(5):
        e = eigenvalues(DiagonalPreconditioner(bulk), seed=seed)
        assert e.products <= 14
        assert float(e.missed[0]) <= 0.003
        assert e.values[0] == pytest.approx(1.0, rel=1e-3)


def test_random_directions_are_not_those_of_a_network_with_the_same_seed():
    torch.manual_seed(0)
    weights = torch.randn(10_000)
    v = RandomDirections(10_000, torch.float32, torch.device("cpu"), 0).draw()
    assert abs(float(v @ weights / weights.norm())) < 0.05
