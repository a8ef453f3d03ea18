"""Predicted loss curves from one Lanczos run for each preconditioner.

Candidates (candidate.py) become runs, one for each rate and momentum; those that share a preconditioner share a
`_Model`. Its nodes make the curve (curve.py), its basis the parameters at which a true loss says how far to trust it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from wellcond.curvature import CurvatureOperator, GaussNewton, Hessian, OutputUnknownError, Preconditioned
from wellcond.forecasts.candidate import Candidate, runs_of
from wellcond.forecasts.curve import Curve, Forecast
from wellcond.linalg import Estimate, Lanczos, eigenvalues, norm
from wellcond.parameters import flatten, unflatten
from wellcond.preconditioners import Momentum
from wellcond.problem import LossNotFiniteError, Problem

TOLERANCE = 0.1
"""A curve is trusted while a true loss at the predicted parameters differs from the predicted one by at most this
fraction of the largest change predicted so far."""


def forecast(
    problem: Problem,
    candidates: Mapping[str, Any],
    *,
    steps: int = 30,
    curvature: CurvatureOperator | None = None,
    max_products: int = 60,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Forecast:
    """The loss that each candidate is predicted to reach, step by step, by the quadratic model at the parameters.

    One Lanczos run from the gradient for each preconditioner, whatever the number of rates and momenta; on a quadratic
    the curves are exact for as many steps as that run has. Momentum starts from rest, batches are the problem's (no
    gradient noise), P is frozen, and weight decay is left out. How long the model holds is measured, not assumed: the
    loss is evaluated at parameters that it predicts, in some ten forward passes a curve.

    Args:
        problem: the loss and the data.
        candidates: by name, a preconditioner P, an optimizer ("as it is": its P, learning rate and momentum), None
            (plain gradient descent), or a `Candidate` with rates and momenta. A rate that is not given is 1/λ_max.
        steps: N, how far to look, 1 or more.
        curvature: of the quadratic model: Gauss-Newton where the loss has an output and a target, else the Hessian.
        max_products: for one Lanczos run; it takes no more than `steps`.
        tolerance: of `Curve.trusted_steps`, a fraction of the predicted change.
        seed: of the start that λ_max(PᵀHP) is searched from.

    Raises:
        TypeError, ValueError: for candidates of another kind or over other parameters, rates and momenta out of range,
            a zero gradient, and where λ_max is not positive and no rate is given.

    Source: theory, section 6.

    >>> import torch, wellcond as wc
    >>> from wellcond.curvature.scaling import jacobi
    >>> from wellcond.forecasts import forecast
    >>> _ = torch.manual_seed(0)
    >>> X = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([1.0, 1.0, 10.0])
    >>> model = torch.nn.Linear(3, 1).double()
    >>> problem = wc.Problem(model, torch.nn.MSELoss(), (X, X.sum(1, keepdim=True)))
    >>> f = forecast(problem, {"plain": None, "Jacobi": jacobi(wc.GaussNewton(problem))})
    >>> f.ranking()
    ['Jacobi', 'plain']
    """
    if steps < 1 or max_products < 1 or not tolerance > 0:
        raise ValueError(f"got steps={steps}, max_products={max_products}, tolerance={tolerance}; all are positive")
    runs = runs_of(candidates)
    with problem:
        start = problem.loss()
        if not norm(problem.gradient()) > 0:
            raise ValueError(
                "the gradient is zero: nothing is predicted to move; measure before the minimum is reached"
            )
        model_of, H = curvature or _curvature(problem), Hessian(problem)
        model_of.check_of(problem)
        found, products, passes = {}, 0, 1
        for P in {id(c.P): c.P for c in runs.values()}.values():  # one basis of long vectors at a time
            under = {name: c for name, c in runs.items() if c.P is P}
            operator = model_of if P is None else model_of.preconditioned(P)
            top = next((c.largest for c in under.values() if c.largest is not None), None)
            if top is None:
                edge = eigenvalues(H if P is None else H.preconditioned(P), seed=seed)
                top, products = edge.largest(), products + edge.products
            model = _Model(operator, top, min(steps, max_products))
            products += model.run.steps
            for name, candidate in under.items():
                found[name] = _curve(name, candidate, model, problem, start, steps, tolerance)
                passes += len(found[name].true_losses)
    curves = {name: found[name] for name in runs}
    return Forecast(curves, start, steps, type(model_of).__name__, products, passes)


def displacements(nodes: Tensor, rate: float, momentum: Momentum, steps: int) -> Tensor:
    """f_N(θ) for N = 0 … steps, (steps + 1, m): after N steps z has moved by −f_N(C)·∇L on the quadratic model.

    1 − θ·f_N(θ) is the residual polynomial of the method, heavy ball's among them; as a recursion on f it divides by no
    eigenvalue, and θ = 0 and θ < 0 are like any other.

    Args:
        nodes: θ, (m,).
        rate: α.
        momentum: the recursion.
        steps: N.
    """
    f, m = torch.zeros_like(nodes), torch.zeros_like(nodes)
    found = [f]
    for k in range(1, steps + 1):
        g = 1 - nodes * f
        c = momentum.c if k > 1 or momentum.first is None else momentum.first
        m = momentum.beta * m + c * g
        f = f + rate * (momentum.a * g + momentum.b * (m / (1 - momentum.beta**k) if momentum.averaged else m))
        found.append(f)
    return torch.stack(found)


def _curvature(problem: Problem) -> CurvatureOperator:
    try:
        G = GaussNewton(problem)
        G.matvec(torch.zeros(problem.size, dtype=problem.dtype, device=problem.device))
    except OutputUnknownError:
        return Hessian(problem)
    return G


class _Model:
    """The quadratic model under one preconditioner, along the gradient's Krylov space.

    Args:
        operator: PᵀCP.
        top: λ_max(PᵀHP), known or from a random start. It decides stability, and neither the gradient's own run nor a
            Gauss-Newton matrix need show it: 20 steps after the start of training, under Jacobi, G's was 27 times less.
        steps: of the Lanczos run from Pᵀ∇L.

    Attributes:
        run: that run.
        nodes, vectors: of its T.
        length: ‖Pᵀ∇L‖.
        weights: (m,), they sum to its square.
    """

    def __init__(self, operator: CurvatureOperator | Preconditioned, top: Estimate, steps: int):
        self.operator, self.top, gradient = operator, top, operator.gradient()
        self.run, self.length = Lanczos(operator, gradient).extend(steps), norm(gradient)
        self.nodes, self.vectors = torch.linalg.eigh(self.run.tridiagonal())
        self.weights = (self.vectors[0] * self.length).square()

    def displacement(self, f: Tensor) -> Tensor:
        """P z for z = −f(C)∇L, (n,), f given on the nodes."""
        basis = self.run.basis
        moved = -(self.vectors @ (f * self.vectors[0]) * self.length).to(basis) @ basis
        if isinstance(self.operator, Preconditioned):
            moved = flatten(self.operator.P.apply(unflatten(moved, self.operator.P.parameters)))
        return moved


def _curve(
    name: str, candidate: Candidate, model: _Model, problem: Problem, start: float, steps: int, tolerance: float
) -> Curve:
    """The curve of a candidate with one rate and momentum."""
    (rate,), (momentum,) = candidate.rates, candidate.momenta
    steepest = max(float(model.nodes[-1]), model.top.value)
    if rate is None:
        if not steepest > 0:
            raise ValueError(
                f"{name}: λ_max is {model.top}, no rate follows from it; give a Candidate with a learning_rate"
            )
        rate = 1 / steepest
    f = displacements(model.nodes, rate, momentum, steps)
    losses = (start - (f - model.nodes * f.square() / 2) @ model.weights).nan_to_num(math.inf, math.inf, -math.inf)
    negative = model.nodes < -10 * model.run.rounding
    share = float(model.weights[negative].sum() / model.weights.sum())
    trusted, seen = _trusted(problem, losses, lambda n: model.displacement(f[n]), tolerance)
    return Curve(name, losses, rate, momentum, rate * steepest / momentum.bound, share, trusted, seen)


def _trusted(
    problem: Problem, losses: Tensor, displaced: Callable[[int], Tensor], tolerance: float
) -> tuple[int, dict[int, float]]:
    """The steps that may be trusted, and the true losses along the path that say so: at doubling steps until the loss
    parts from the prediction, then halving."""
    seen, start = dict[int, float](), float(losses[0])
    rounding = 16 * torch.finfo(problem.loss_dtype).eps * abs(start)

    def holds(n: int) -> bool:
        if not math.isfinite(float(losses[n])):
            return False
        try:
            with problem.moved(displaced(n)):
                seen[n] = problem.loss()
        except LossNotFiniteError:
            seen[n] = math.inf
        change = float((losses[: n + 1] - start).abs().max())
        return abs(seen[n] - float(losses[n])) <= tolerance * change + rounding

    good, bad = 0, len(losses)
    while bad - good > 1:
        n = min(max(1, 2 * good), len(losses) - 1) if bad == len(losses) else (good + bad) // 2
        good, bad = (n, bad) if holds(n) else (good, n)
    return good, dict(sorted(seen.items()))
