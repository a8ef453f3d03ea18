"""Every proximal step against a minimization of its own definition; values, gradients and residuals against plain
formulas, autograd and the definition of a subdifferential."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize

from wellcond.penalties import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    Box,
    ElasticNet,
    GroupL1,
    NonNegative,
    NuclearNorm,
    Power,
    SparseGroupL1,
)

EPS = torch.finfo(torch.float64).eps
few = settings(max_examples=40, deadline=None)
many = settings(max_examples=250, deadline=None)

PARTS = torch.tensor([[0, 5, 0], [2, 2, 5], [2, 7, 0], [5, 0, 2]])  # a partition of a 4 × 3 tensor, with gaps
SHAPE = (4, 3)
# One of every kind, for the properties that all have.
CONVEX = [
    L1(0.3), L2(0.7), ElasticNet(0.4, 0.3), Power(0.5, 1), Power(0.5, 2), GroupL1(0.2), GroupL1(0.2, dim=-1),
    GroupL1(0.2, groups=PARTS), SparseGroupL1(0.3, 0.4), SparseGroupL1(0.3, 0.4, groups=PARTS), NuclearNorm(0.4),
    NonNegative(), Box(-0.5, 0.25),
]  # fmt: skip
WITHOUT_PROX = [Power(0.5, 1.5), Power(0.5, 3)]
NON_CONVEX = [L0(0.3), MCP(0.3), MCP(0.3, gamma=0.4), SCAD(0.3), SCAD(0.3, a=2.1)]
ALL = CONVEX + NON_CONVEX
WITH_GRADIENT = [p for p in ALL + WITHOUT_PROX if not isinstance(p, L0 | Box)]

seeds = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


def randn(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def log_uniform(generator, decades, *shape):
    return 10 ** (decades * (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5))


# --- entry by entry: dense search in extended precision, where 1e±170 squared is an ordinary number


def mcp(r, t, gamma):
    return np.where(r <= gamma * t, t * r - r**2 / (2 * gamma), gamma * t**2 / 2)


def scad(r, t, a):
    middle = (2 * a * t * r - r**2 - t**2) / (2 * (a - 1))
    return np.where(r <= t, t * r, np.where(r <= a * t, middle, t**2 * (a + 1) / 2))


# name: (the penalty, its plain formula in r = |x|, and the |x| where its prox changes its formula)
SCALAR = {
    "L1": (L1, lambda r, t: t * r, lambda t, s: [s * t]),
    "L2": (L2, lambda r, t: t * r**2 / 2, lambda t, s: []),
    "elastic net": (
        lambda t: ElasticNet(t, 0.25), lambda r, t: t * (r / 4 + 3 * r**2 / 8), lambda t, s: [s * t / 4]
    ),
    "L0": (L0, lambda r, t: t * (r != 0), lambda t, s: [math.sqrt(2) * s**0.5 * t**0.5]),
    "Power 1": (lambda t: Power(t, 1), lambda r, t: t * r, lambda t, s: [s * t]),
    "Power 2": (lambda t: Power(t, 2), lambda r, t: t * r**2 / 2, lambda t, s: []),
    "MCP": (MCP, lambda r, t: mcp(r, t, 3), lambda t, s: [s * t, 3 * t, t * math.sqrt(3) * s**0.5]),
    "MCP, small gamma": (
        lambda t: MCP(t, 0.5), lambda r, t: mcp(r, t, 0.5), lambda t, s: [s * t, t / 2, t * math.sqrt(s / 2)]
    ),
    "SCAD": (
        SCAD, lambda r, t: scad(r, t, np.longdouble(3.7)),
        lambda t, s: [s * t, t, t * (1 + s), 3.7 * t, t * math.sqrt(4.7) * s**0.5, t * (s + 4.7) / 2],
    ),
    "SCAD, small a": (
        lambda t: SCAD(t, 2.125), lambda r, t: scad(r, t, 2.125),
        lambda t, s: [s * t, t, t * (1 + s), 2.125 * t, t * math.sqrt(3.125) * s**0.5, t * (s + 3.125) / 2],
    ),
}  # fmt: skip

HUGE = 1e170 if np.finfo(np.longdouble).maxexp > 1024 else 1e60  # where long double is double
ordinary = st.floats(-3, 3).map(lambda e: 10**e)
extreme = st.sampled_from([HUGE, 1 / HUGE])
strengths = st.one_of(ordinary, ordinary, extreme, st.just(0.0))
switches = st.sampled_from([0.5, 1.125, 2.7, 3.0, 3.125, 3.7 - 1, 4.7])  # where MCP and SCAD change their branch
steps = st.one_of(ordinary, st.floats(0.3, 6), switches, extreme)


def search(objective, x, knees):
    """The least value found and where: on a dense grid about [0, x] with the knees, then closer and closer."""
    grid = np.concatenate([np.linspace(-0.25, 1.25, 601) * x, knees, [0, x]])
    best = grid[np.argmin(objective(grid))]
    values, width = objective(grid), abs(x) / 400
    for _ in range(5):
        near = np.append(best + np.linspace(-1, 1, 201) * width, best)
        best, width = near[np.argmin(objective(near))], width / 50
    far = objective(grid[np.abs(grid - best) > 0.01 * abs(x)])
    # A tie: as good a point elsewhere, up to the grid's width squared; then the minimizer is not to be compared.
    # (A convex objective rises by 6e-5 of its largest value within 0.01 x.)
    tie = len(far) and min(far) - objective(best) <= 1e-5 * max(values)
    return objective(best), best, tie


def check_prox_of_an_entry(name, strength, step, x):
    make, formula, knees_of = SCALAR[name]
    q = make(strength).prox(torch.tensor([x], dtype=torch.float64), step).item()
    t, s, wide_x = np.longdouble(strength), np.longdouble(step), np.longdouble(x)

    def objective(q):
        return formula(abs(q), t) + (q - wide_x) ** 2 / (2 * s)

    knees = np.array([k for k in knees_of(strength, step) if k < math.inf], dtype=np.longdouble)
    least, argmin, tie = search(objective, wide_x, math.copysign(1, x) * knees)
    # q carries some rounding errors of x, and the least number; the objective is flat at its minimum, of curvature 1/s
    # (and t). Where q is chosen among two, the choice has a rounding error of the objective.
    rounding, least_number = 16 * EPS * abs(wide_x), np.longdouble(1e-323)
    assert objective(np.longdouble(q)) <= least * (1 + 16 * EPS) + rounding**2 / s + least_number**2 * (1 / s + t)
    if not tie:  # the search resolves 1e-11 x, and its objective the root of 1e-19
        assert abs(q - argmin) <= 1e-8 * abs(wide_x) + least_number


@pytest.mark.parametrize("name", SCALAR)
@many
@given(strength=strengths, step=steps, data=st.data())
def test_prox_of_an_entry_minimizes_its_definition(name, strength, step, data):
    knees = [k for k in SCALAR[name][2](strength, step) if 0 < k < math.inf]
    factors = st.one_of(st.sampled_from([1, 1 - EPS, 1 + EPS]), st.floats(0.2, 3))
    near = st.builds(operator.mul, st.sampled_from(knees or [1.0]), factors)
    anywhere = st.one_of(near, near, near, ordinary, extreme, st.sampled_from([0.0, 5e-324]))
    check_prox_of_an_entry(name, strength, step, data.draw(anywhere) * data.draw(st.sampled_from([1, -1])))


@pytest.mark.parametrize("name", ["L0", "MCP", "MCP, small gamma", "SCAD", "SCAD, small a"])
@pytest.mark.parametrize("step", [0.01, 0.3, 0.6, 1.1, 2.0, 2.9, 3.6, 4.5, 5.0, 50.0])
def test_prox_switches_where_it_should(name, step):
    for knee in SCALAR[name][2](0.7, step):
        for factor in (0.97, 0.995, 1 - 1e-6, 1, 1 + 1e-6, 1.005, 1.03):
            check_prox_of_an_entry(name, 0.7, step, knee * factor)


@few
@given(generator=seeds)
def test_a_tensor_of_steps_takes_the_branches_entry_by_entry(generator):
    x, steps = 3 * randn(generator, 50), log_uniform(generator, 4, 50)
    for penalty in ALL:
        if penalty.separable:
            one_by_one = torch.stack([penalty.prox(a, s.item()) for a, s in zip(x, steps, strict=True)])
            torch.testing.assert_close(penalty.prox(x, steps), one_by_one, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("exponent", [-1000, -500, 500])
@pytest.mark.parametrize("make", [L1, MCP, SCAD, GroupL1, SparseGroupL1])
def test_huge_and_tiny_tensors_neither_overflow_nor_underflow(make, exponent):
    """These are homogeneous, and a power of two rounds nothing: the same digits at every size."""
    generator, c = torch.Generator().manual_seed(0), 2.0**exponent
    x, scale, steps = randn(generator, *SHAPE), log_uniform(generator, 2, *SHAPE), log_uniform(generator, 2, *SHAPE)
    plain, scaled = make(0.25), make(0.25 * c)
    for step in (0.5, 5.0, steps):
        assert torch.equal(scaled.prox(c * x, step), c * plain.prox(x, step))
        assert torch.equal(scaled.scaled_prox(c * x, step, scale), c * plain.scaled_prox(x, step, scale))
    assert torch.equal(scaled.residual(c * x, c * steps), c * plain.residual(x, steps))
    if make is GroupL1:
        assert torch.equal(plain.value(c * x), c * plain.value(x))


# --- groups


def brute_group(x, d, weight, l1):
    """The prox of one group, by brentq on the norm of the solution."""
    u = np.sign(x) * np.maximum(np.abs(x) - l1 * d, 0)
    if weight == 0 or np.linalg.norm(u / d) <= weight:
        return u if weight == 0 else 0 * u
    log_r = brentq(
        lambda e: np.linalg.norm(u / (math.exp(e) + weight * d)) - 1, -300, math.log(np.linalg.norm(u)) + 1e-9,
        xtol=1e-15, rtol=1e-15,
    )  # fmt: skip
    r = math.exp(log_r)
    return u * r / (r + weight * d)


@many
@given(
    generator=seeds,
    n=st.sampled_from([1, 2, 3, 20]),
    decades=st.sampled_from([0, 1, 4, 8]),
    along=st.floats(0, 1),
    closeness=st.floats(-6, 3),
    l1_ratio=st.sampled_from([0.0, 0.3]),
)
def test_group_prox_finds_the_root_for_any_steps(generator, n, decades, along, closeness, l1_ratio):
    d = log_uniform(generator, decades, n)
    x = randn(generator, n) * d**along  # along 1 lets every scale of d matter
    # From far inside what survives (3) to just at the edge (-6).
    strength = float((x / d).norm()) / math.sqrt(n) / (1 + 10**closeness)
    q = SparseGroupL1(strength, l1_ratio).prox(x[None], d[None])[0]
    answer = brute_group(x.numpy(), d.numpy(), strength * (1 - l1_ratio) * math.sqrt(n), strength * l1_ratio)
    # Near the edge q grows from 0 with the distance to it, which 1e-6 of cancellation takes six digits from.
    assert np.abs(q.numpy() - answer).max() <= 1e-8 * max(np.abs(answer).max(), 1e-6 * x.abs().max())


def test_group_prox_where_newtons_method_is_slowest():
    """Found by a search for it: steps 2e6 apart, and 13 iterations to the last digits (10 are 1 % off)."""
    x = 10 ** torch.tensor([-0.495, 3.463, -1.799, -3.729, 1.65, -2.903], dtype=torch.float64)
    d = 10 ** torch.tensor([-0.609, 2.364, 0.604, -1.895, 1.197, -4.0], dtype=torch.float64)
    strength = 0.718494 * float((x / d).norm()) / math.sqrt(6)
    q = GroupL1(strength).prox(x[None], d[None])[0].numpy()
    assert q == pytest.approx(brute_group(x.numpy(), d.numpy(), strength * math.sqrt(6), 0.0), rel=1e-12)


def objective_of(penalty, x, step):
    def objective(q):
        q = torch.as_tensor(q, dtype=torch.float64).view_as(x)
        return float(penalty.value(q) + ((q - x).square() / (2 * step)).sum())

    return objective


@pytest.mark.parametrize(
    "penalty", [GroupL1(0.4), SparseGroupL1(0.5, 0.4), GroupL1(0.4, dim=1), NuclearNorm(0.5)], ids=str
)
@pytest.mark.parametrize("seed", range(4))
def test_prox_minimizes_its_definition_by_scipy(penalty, seed):
    generator = torch.Generator().manual_seed(seed)
    x = randn(generator, 2, 2) * 1.5
    for step in [0.7] if isinstance(penalty, NuclearNorm) else [0.7, log_uniform(generator, 2, 2, 2)]:
        objective, q = objective_of(penalty, x, step), penalty.prox(x, step)
        found = min(
            (
                minimize(
                    objective,
                    start.flatten(),
                    method="Nelder-Mead",
                    options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000},
                )
                for start in (x, q + 0.05)
            ),
            key=lambda result: result.fun,
        )
        assert objective(q) <= found.fun + 1e-13 * (1 + found.fun)  # rounding of a handful of terms
        # Strongly convex with 1/step: a point with an excess in value is no further than this.
        excess = found.fun - objective(q) + 1e-13
        assert np.linalg.norm(found.x - q.flatten().numpy()) <= math.sqrt(
            2 * excess * float(np.max(step if isinstance(step, float) else step.numpy()))
        )


def test_index_groups_equal_dim_groups():
    generator = torch.Generator().manual_seed(0)
    whole, g, scale = (randn(generator, 3, 4, 2) for _ in range(3))
    for dim in range(-3, 3):
        x = whole.clone()
        x.select(dim, 1).mul_(0.01)  # a group to die, while others live
        shape = [1, 1, 1]
        shape[dim] = -1
        numbers = (10 * torch.arange(x.shape[dim])).view(shape).expand(x.shape)  # gaps in between
        for make in (GroupL1, SparseGroupL1):
            one, other = make(0.3, dim=dim), make(0.3, groups=numbers.to(torch.int32))
            q = one.prox(x, 0.5)
            assert (q == 0).any()
            assert (q != 0).any()
            pairs = [(one.value(x), other.value(x)), (q, other.prox(x, 0.5)), (one.gradient(x), other.gradient(x))]
            pairs += [(one.prox(x, scale.exp()), other.prox(x, scale.exp()))]
            pairs += [(one.scaled_prox(x, 0.5, scale.exp()), other.scaled_prox(x, 0.5, scale.exp()))]
            pairs += [(one.residual(q, g), other.residual(q, g))]
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)  # sums in another order


# --- what every penalty must do


@pytest.mark.parametrize("penalty", ALL, ids=str)
@few
@given(generator=seeds)
def test_scaled_prox_is_the_prox_in_z(penalty, generator):
    x, scale = randn(generator, *SHAPE), log_uniform(generator, 4, *SHAPE)
    steps = [0.1, 4.0] if isinstance(penalty, NuclearNorm) else [0.1, 4.0, log_uniform(generator, 2, *SHAPE)]
    for step in steps:
        expected = scale * penalty.prox(x / scale, step)
        size = scale * (x / scale).abs().max() if not penalty.separable else x.abs()
        assert ((penalty.scaled_prox(x, step, scale) - expected).abs() <= 1e-13 * size).all()


@pytest.mark.parametrize("penalty", CONVEX, ids=str)
@few
@given(generator=seeds)
def test_prox_of_a_convex_penalty_is_stationary(penalty, generator):
    x = 2 * randn(generator, *SHAPE)
    steps = [0.3, 3.0] if isinstance(penalty, NuclearNorm) else [0.3, 3.0, log_uniform(generator, 8, *SHAPE)]
    for step in steps:
        q = penalty.prox(x, step)
        residual = penalty.residual(q, (q - x) / step)
        # The gradient (q − x)/step has a rounding error of x/step; the rest is of the penalty's size.
        size = x.abs() / step if penalty.separable or torch.is_tensor(step) else (x / step).abs().max()
        tolerance = 100 * EPS * (size + 10 * (penalty.strength or 0))
        if isinstance(penalty, NuclearNorm):  # singular vectors are as ill-conditioned as their singular value is small
            s = torch.linalg.svdvals(q)
            tolerance = tolerance * s[0] / s[s > 1e-12 * s[0]].min() if s[0] > 0 else tolerance
        assert (residual.abs() <= tolerance).all()


@pytest.mark.parametrize("penalty", [MCP(0.3), SCAD(0.3), NonNegative(), Box(-math.inf, 1e9), L0(0.3)], ids=str)
def test_in_z_what_is_kept_keeps_its_digits_and_zeros_are_exact(penalty):
    generator = torch.Generator().manual_seed(0)
    x, scale = 100 + randn(generator, 1000).abs(), log_uniform(generator, 2, 1000)
    assert torch.equal(penalty.scaled_prox(x, 0.5, scale), x)
    tiny = torch.tensor([-5e-324], dtype=torch.float64)  # underflows in z
    assert penalty.scaled_prox(tiny, 0.5, torch.tensor([1e9])).item() == 0


@pytest.mark.parametrize("penalty", CONVEX + WITHOUT_PROX, ids=str)
@few
@given(generator=seeds)
def test_residual_is_the_least_of_the_subdifferential(penalty, generator):
    """v = residual − g is a subgradient, and R falls along −residual as fast as v says: the least one (the direction
    of steepest descent)."""
    x, g = randn(generator, *SHAPE), 0.7 * randn(generator, *SHAPE)
    if penalty not in WITHOUT_PROX:
        x = penalty.prox(x, 2.0)
    x = x * (torch.arange(4) != 2)[:, None]  # a dead row, dead columns are the prox's
    residual = penalty.residual(x, g)
    v = residual - g
    for _ in range(20):
        y = x + randn(generator, *SHAPE) * log_uniform(generator, 4)
        if isinstance(penalty, Box):
            y = penalty.prox(y, 1.0)
        assert penalty.value(y) >= penalty.value(x) + (v * (y - x)).sum() - 1e-12
    h = 1e-9
    slope = (penalty.value(x - h * residual) - penalty.value(x)) / h
    # The next order of R costs √h for |x|^1.5 and h for the others, rounding 1e-15/h.
    torch.testing.assert_close(slope, (-residual * v).sum(), rtol=0, atol=1e-4)


def test_residual_of_non_convex_penalties_by_their_formulas():
    x = torch.tensor([0.0, 0.0, 0.2, -0.2, 0.5, 5.0], dtype=torch.float64)
    g = torch.tensor([0.1, -0.7, 0.7, 0.7, 0.7, 0.7], dtype=torch.float64)
    # soft(g, 0.3) at 0, else g + R'(x)
    expected = {
        L0(0.3): [0, 0, 0.7, 0.7, 0.7, 0.7],
        MCP(0.3, gamma=3): [0, -0.4, 0.7 + 0.3 - 0.2 / 3, 0.7 - 0.3 + 0.2 / 3, 0.7 + 0.3 - 0.5 / 3, 0.7],
        SCAD(0.3, a=3): [0, -0.4, 1.0, 0.4, 0.7 + (0.9 - 0.5) / 2, 0.7],
    }
    for penalty, values in expected.items():
        torch.testing.assert_close(penalty.residual(x, g), torch.tensor(values, dtype=torch.float64))


def test_residual_at_the_edges_of_a_constraint():
    x = torch.tensor([-1.0, -1.0, 0.0, 2.0, 2.0, 3.0, -2.0])
    g = torch.tensor([-0.5, 0.5, 0.5, -0.5, 0.5, 0.5, 0.5])
    inf = math.inf
    assert Box(-1, 2).residual(x, g).tolist() == [-0.5, 0.0, 0.5, 0.0, 0.5, inf, inf]
    assert NonNegative().residual(torch.tensor([0.0, 0.0, 1.0, -1.0]), torch.tensor([1.0, -1, 1, 1])).tolist() == [
        0,
        -1,
        1,
        inf,
    ]
    assert Box(1, 1).residual(torch.ones(2), torch.tensor([1.0, -1.0])).tolist() == [0.0, 0.0]
    # 0.1 rounds up in bfloat16 and is still inside.
    box, edge = Box(-0.1, 0.1), torch.tensor([0.1], dtype=torch.bfloat16)
    assert box.value(edge) == 0
    assert box.residual(edge, -edge).item() == 0


@pytest.mark.parametrize("penalty", WITH_GRADIENT, ids=str)
@few
@given(generator=seeds)
def test_gradient_is_that_of_the_value(penalty, generator):
    x = randn(generator, *SHAPE).requires_grad_()
    (expected,) = torch.autograd.grad(penalty.value(x), x)
    gradient = penalty.gradient(x.detach())
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)  # singular vectors of near singular values
    total = torch.ones_like(x)
    penalty.add_gradient(total, x.detach(), torch.tensor(0.5))
    torch.testing.assert_close(total, 1 + 0.5 * gradient)
    zero = torch.zeros(SHAPE, requires_grad=True)
    if not isinstance(penalty, NuclearNorm):  # torch's derivative of singular values has a pole at equal ones
        assert torch.equal(torch.autograd.grad(penalty.value(zero), zero)[0], torch.zeros(SHAPE))
    assert torch.equal(penalty.gradient(zero.detach()), torch.zeros(SHAPE))


def test_values_by_plain_formulas():
    generator = torch.Generator().manual_seed(0)
    x = randn(generator, *SHAPE) * (torch.arange(3) != 1)
    for make, formula, _ in SCALAR.values():
        expected = float(formula(np.abs(x.numpy()), 0.3).sum())
        assert make(0.3).value(x).item() == pytest.approx(expected, rel=1e-14)
    assert Power(0.3, 1.5).value(x).item() == pytest.approx(0.2 * float((x.abs() ** 1.5).sum()), rel=1e-14)
    rows, columns = math.sqrt(3) * x.norm(dim=1).sum(), 2 * x.norm(dim=0).sum()
    parts = sum(math.sqrt(len(x[i == PARTS])) * x[i == PARTS].norm() for i in (0, 2, 5, 7))
    for penalty, groups in ((GroupL1(0.3), rows), (GroupL1(0.3, dim=1), columns), (GroupL1(0.3, groups=PARTS), parts)):
        assert penalty.value(x).item() == pytest.approx(0.3 * groups.item(), rel=1e-14)
    sparse = 0.3 * (0.4 * x.abs().sum() + 0.6 * rows)
    assert SparseGroupL1(0.3, 0.4).value(x).item() == pytest.approx(sparse.item(), rel=1e-14)
    assert GroupL1(0.3).value(torch.tensor([[math.inf, 1.0]])) == math.inf
    nuclear = 0.3 * torch.linalg.matrix_norm(x, "nuc")
    assert NuclearNorm(0.3).value(x).item() == pytest.approx(nuclear.item(), rel=1e-14)
    assert NuclearNorm(0.3).value(x.view(4, 3, 1, 1)).item() == pytest.approx(nuclear.item(), rel=1e-14)
    assert Box(-1, 1).value(torch.tensor([-1.0, 1.0])) == 0
    assert Box(-1, 1).value(torch.tensor([-1.0, 1.1])) == math.inf
    assert NonNegative().value(torch.tensor([-1e-30])) == math.inf


def test_l2_adds_torchs_weight_decay_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        p = torch.nn.Parameter(randn(generator, 100).to(dtype))
        gradient = randn(generator, 100).to(dtype)
        p.grad, before, mine = gradient.clone(), p.detach().clone(), gradient.clone()
        torch.optim.SGD([p], lr=0.1, weight_decay=0.03).step()
        L2(0.01).add_gradient(mine, before, 3.0)
        assert torch.equal(before.add(mine, alpha=-0.1), p.detach())


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_strength_zero_is_the_identity(penalty):
    x = randn(torch.Generator().manual_seed(0), *SHAPE)
    x[0], x[1, 1], x[2, 1] = 0, 5e-324, 1e300
    if penalty.strength is None:
        with pytest.raises(TypeError, match="has no strength"):
            penalty.with_strength(0.0)
        return
    steps = [0.1, 100.0] if isinstance(penalty, NuclearNorm) else [0.1, 100.0, torch.full(SHAPE, 100.0).double()]
    for zero in (penalty.with_strength(0.0), penalty.with_strength(torch.tensor(0.0, dtype=torch.float64))):
        for step in steps:
            assert torch.equal(zero.prox(x, step), x)
            assert torch.equal(zero.scaled_prox(x, step, torch.ones_like(x)), x)
        assert zero.value(x.clamp(-1, 1)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_dtypes_are_kept_and_half_precision_computes_in_single(penalty, dtype):
    x = randn(torch.Generator().manual_seed(0), *SHAPE).to(dtype)
    scale = (0.5 + x.abs()).to(dtype)
    single = x.float()
    steps = [0.3, torch.tensor(0.3, dtype=torch.float64)]
    for step in steps if isinstance(penalty, NuclearNorm) else [*steps, torch.full(SHAPE, 0.3, dtype=torch.float64)]:
        assert torch.equal(penalty.prox(x, step), penalty.prox(single, step).to(dtype))
        scaled = penalty.scaled_prox(x, step, scale)
        assert torch.equal(scaled, penalty.scaled_prox(single, step, scale.float()).to(dtype))
    assert penalty.residual(x, x).dtype == dtype
    assert penalty.value(x).dtype == torch.float32
    assert penalty.value(x) == penalty.value(single)
    if penalty in WITH_GRADIENT:
        assert torch.equal(penalty.gradient(x), penalty.gradient(single).to(dtype))
    if penalty.strength is not None:  # a 0-dim float64 strength does not promote, not even a 0-dim x
        moved = penalty.with_strength(torch.tensor(0.2, dtype=torch.float64))
        assert moved.prox(x, 0.3).dtype == moved.residual(x, x).dtype == dtype
        if penalty.separable:
            assert moved.prox(x[0, 0], 0.3).dtype == moved.scaled_prox(x[0, 0], 0.3, scale[0, 0]).dtype == dtype


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_what_is_not_finite_passes_and_spreads_no_further_than_its_group(penalty):
    clean = randn(torch.Generator().manual_seed(0), *SHAPE)
    x = clean.clone()
    x[1, 0], x[1, 1] = math.nan, -math.inf
    if penalty.separable:
        together = torch.tensor([[False] * 3, [True, True, False], [False] * 3, [False] * 3])
    elif isinstance(penalty, NuclearNorm):
        together = torch.ones(SHAPE, dtype=torch.bool)
    else:
        spoiled = penalty.partition.largest(x)
        together = ~penalty.partition.spread(spoiled, x).isfinite().expand(SHAPE)
    passed = x.clamp(penalty.low, penalty.high) if isinstance(penalty, Box) else x
    steps = [0.3, 50.0] if isinstance(penalty, NuclearNorm) else [0.3, 50.0, log_uniform(torch.Generator(), 2, *SHAPE)]
    for step in steps:
        for prox in (penalty.prox, lambda x, step: penalty.scaled_prox(x, step, torch.ones_like(x))):
            q = prox(x, step)
            torch.testing.assert_close(q[together], passed[together], rtol=0, atol=0, equal_nan=True)
            assert torch.equal(q[~together], prox(clean, step)[~together])


def test_with_strength_is_a_copy():
    penalty = SparseGroupL1(0.1, 0.3, groups=PARTS)
    other = penalty.with_strength(0.2)
    x = randn(torch.Generator().manual_seed(0), *SHAPE)
    assert (penalty.strength, other.strength) == (0.1, 0.2)
    assert other.value(x).item() == pytest.approx(2 * penalty.value(x).item())
    with pytest.raises(ValueError, match="strength"):
        penalty.with_strength(-1.0)
    for one in ALL + WITHOUT_PROX:
        if one.separable and one.strength is not None:
            assert hash(one.key) == hash(one.with_strength(9.0).key)
            assert one.key == one.with_strength(torch.tensor(9.0)).key
    keys = [p.key for p in ALL + WITHOUT_PROX if p.separable]
    assert len(set(keys)) == len(keys)


def test_repr_is_how_to_make_it():
    reprs = ["L1(0.001)", "ElasticNet(0.001, l1_ratio=0.5)", "GroupL1(0.001, dim=0)", "MCP(0.001, gamma=3.0)"]
    reprs += [
        "SparseGroupL1(0.001, l1_ratio=0.5, dim=1)",
        "NonNegative()",
        "Box(low=-inf, high=1.0)",
        "Power(1.0, q=2.0)",
    ]
    for text in reprs:
        assert repr(eval(text, {**globals(), "inf": math.inf})) == text
    assert repr(GroupL1(0.1, groups=PARTS)) == "GroupL1(0.1, groups=<4 groups over shape (4, 3)>)"


MATRIX = torch.ones(4, 3)
BAD = {
    "negative": (lambda: L1(-1e-3), ValueError, "strength is -0.001; give a finite number, 0 or more"),
    "NaN": (lambda: L2(math.nan), ValueError, "strength is nan"),
    "infinite": (lambda: L0(math.inf), ValueError, "strength is inf"),
    "a string": (lambda: MCP("0.1"), TypeError, "strength is '0.1'"),
    "a bool": (lambda: SCAD(True), TypeError, "strength is True"),
    "None": (lambda: NuclearNorm(None), TypeError, "strength is None"),
    "a tensor": (lambda: L1(torch.tensor(0.1)), TypeError, "strength is tensor"),
    "gamma": (lambda: MCP(0.1, gamma=0), ValueError, "gamma is 0; give a finite number above 0"),
    "infinite gamma": (lambda: MCP(0.1, gamma=math.inf), ValueError, "gamma is inf"),
    "a": (lambda: SCAD(0.1, a=2), ValueError, "a is 2; give a finite number above 2"),
    "q": (lambda: Power(0.1, 0.5), ValueError, "q is 0.5; give a finite number, 1 or more"),
    "no q": (lambda: Power(0.1, None), TypeError, "q is None"),
    "ratio": (lambda: ElasticNet(0.1, 1.1), ValueError, "l1_ratio is 1.1; give a number from 0 to 1"),
    "ratio of groups": (lambda: SparseGroupL1(0.1, -0.1), ValueError, "l1_ratio is -0.1"),
    "NaN ratio": (lambda: ElasticNet(0.1, math.nan), ValueError, "l1_ratio is nan"),
    "bounds": (lambda: Box(1, 0), ValueError, "high is 0; give a number no less than low=1"),
    "NaN bound": (lambda: Box(math.nan, 0), ValueError, "low is nan"),
    "NaN upper bound": (lambda: Box(0, math.nan), ValueError, "high is nan"),
    "nowhere": (lambda: Box(-math.inf, -math.inf), ValueError, "high is -inf"),
    "dim": (lambda: GroupL1(0.1, dim=0.5), TypeError, "dim is 0.5"),
    "no such dim": (lambda: GroupL1(0.1, dim=2).value(MATRIX), ValueError, r"shape \(4, 3\) has no dimension 2"),
    "no dim at all": (lambda: GroupL1(0.1).prox(torch.tensor(1.0), 1.0), ValueError, r"shape \(\) has no dimension 0"),
    "groups of floats": (lambda: GroupL1(0.1, groups=torch.ones(3)), ValueError, "dtype torch.float32"),
    "a mask": (lambda: GroupL1(0.1, groups=torch.ones(3).bool()), ValueError, "dtype torch.bool"),
    "in no group": (lambda: GroupL1(0.1, groups=torch.tensor([0, -1])), ValueError, "groups has -1 in it"),
    "a list": (lambda: GroupL1(0.1, groups=[0, 1]), TypeError, "groups is a list; give an integer tensor"),
    "not covered": (
        lambda: GroupL1(0.1, groups=PARTS).prox(MATRIX.T, 1.0), ValueError,
        r"groups has shape \(4, 3\) and doesn't cover a tensor of shape \(3, 4\); give an integer tensor",
    ),
    "no matrix": (lambda: NuclearNorm(0.1).prox(torch.ones(3), 1.0), ValueError, r"shape \(3,\) is no matrix"),
    "a step an entry": (lambda: NuclearNorm(0.1).prox(MATRIX, MATRIX), ValueError, 'no closed form; use space="intr'),
    "no prox": (lambda: Power(0.1, 1.5).prox(MATRIX, 1.0), TypeError, r"Power\(0.1, q=1.5\) has no proximal step"),
    "no gradient": (lambda: L0(0.1).gradient(MATRIX), TypeError, r'L0\(0.1\) has no gradient; .* via="prox"'),
    "nor here": (lambda: Box(0, 1).gradient(MATRIX), TypeError, "has no gradient"),
    "nor there": (lambda: NonNegative().add_gradient(MATRIX, MATRIX, 1.0), TypeError, "has no gradient"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_what_was_given_and_what_to_give(case):
    attempt, error, message = BAD[case]
    with pytest.raises(error, match=message):
        attempt()


def test_a_formula_compiles_once_for_every_strength():
    penalty = SCAD(1.0)

    def everything(x, step, scale, strength):
        moved = penalty.with_strength(strength)
        return moved.prox(x, step), moved.scaled_prox(x, step, scale), moved.gradient(x), moved.residual(x, x)

    compiled = torch.compile(everything, fullgraph=True, dynamic=True)
    generator = torch.Generator().manual_seed(0)
    for n, strength in ((30, 0.3), (40, 0.7)):
        x, step, scale = randn(generator, n, 5), log_uniform(generator, 3, n, 5), log_uniform(generator, 2, n, 5)
        arguments = (x, step, scale, torch.tensor(strength, dtype=torch.float64))
        for mine, eager in zip(compiled(*arguments), everything(*arguments), strict=True):
            torch.testing.assert_close(mine, eager, rtol=1e-12, atol=1e-14)
