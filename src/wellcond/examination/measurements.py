"""Everything that an examination measures, in one place, before anything is concluded from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from wellcond.conditioning import DENSE_LIMIT, Conditioning, Effort, conditioning
from wellcond.curvature import CurvatureOperator, GaussNewton, Hessian, OutputUnknownError
from wellcond.examination.row_norms import RowNormCorrelation, row_norm_correlation
from wellcond.normalization import LayerConditioning, layer_conditioning
from wellcond.preconditioners import Diagonal, preconditioner_of, reading_of
from wellcond.problem import Problem, optimized_parameters
from wellcond.stability import EdgeRatio, edge_ratio

Progress = Callable[[str, int, int], None]
"""(stage, products done, products expected); called after every product."""

THOROUGH = Effort()
QUICK = Effort(extremes=20, count=1, probes=3, probe_steps=2, trace_probes=3, gradient_steps=10)
QUICK_DENSE_LIMIT = 80


@dataclass(frozen=True)
class OptimizerFacts:
    """Name and settings of the optimizer, as it stands."""

    name: str
    groups: list[dict[str, Any]]


@dataclass
class Measurements:
    """What was measured on a training run.

    Attributes:
        model: class name of the network.
        parameters, examples, batches: sizes of what was measured.
        loss, gradient_norm: L(p) and ‖∇L(p)‖.
        dtype, mode, seed, curvature: how it was measured.
        optimizer: None if the run has none.
        preconditioned: whether the optimizer's P is more than the identity.
        figures: by curvature: "hessian", "gauss_newton", and each with "_preconditioned".
        edge: the edge ratio; None without an optimizer.
        row_norms: of theory 3.2; None without a preconditioner or a Hessian.
        layers: conditioning of each linear layer.
        unreached: trainable parameters that the loss does not depend on.
        notes: what the reader should know about the measuring.
        products: matrix-vector products spent.
        seconds: spent measuring.
        gradient_seconds: one gradient of the whole loss, for comparison.
    """

    model: str
    parameters: int
    examples: int
    batches: int
    loss: float
    gradient_norm: float
    dtype: str
    mode: str
    seed: int
    curvature: str
    optimizer: OptimizerFacts | None
    preconditioned: bool
    figures: dict[str, Conditioning] = field(default_factory=dict)
    edge: EdgeRatio | None = None
    row_norms: RowNormCorrelation | None = None
    layers: list[LayerConditioning] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    products: int = 0
    seconds: float = 0.0
    gradient_seconds: float = 0.0

    def of(self, curvature: str) -> Conditioning | None:
        """The figures of a curvature under the optimizer's P, which are the plain ones where P is the identity."""
        return self.figures.get(f"{curvature}_preconditioned") or self.figures.get(curvature)


def measure(
    model: torch.nn.Module,
    loss_fn: Any,
    data: Any,
    optimizer: Any = None,
    *,
    loss: Any = None,
    curvature: str = "hessian",
    mode: str = "train",
    batches: int | None = None,
    dtype: torch.dtype | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurements:
    """Measure; the arguments are those of `wellcond.examine`."""
    if curvature not in ("hessian", "gauss-newton"):
        raise ValueError(f'got curvature={curvature!r}; it is "hessian" or "gauss-newton"')
    started = time.perf_counter()
    P, facts, notes = None, None, []
    chosen = None
    if optimizer is not None:
        torch_optimizer, _ = reading_of(optimizer)
        P, facts = preconditioner_of(optimizer), _facts(torch_optimizer)
        chosen, left_out = optimized_parameters(model, torch_optimizer)
        if left_out:
            notes.append(f"Not in the optimizer, taken as frozen: {_some(left_out)}.")
    limit = QUICK_DENSE_LIMIT if quick else DENSE_LIMIT
    problem = _problem(
        model,
        loss_fn,
        data,
        notes,
        limit,
        loss=loss,
        mode=mode,
        batches=batches,
        parameters=chosen,
        seed=seed,
        dtype=dtype,
    )
    before = time.perf_counter()
    gradient = problem.gradient()
    gradient_seconds = time.perf_counter() - before
    m = Measurements(
        model=type(problem.model).__name__,
        parameters=problem.size,
        examples=problem.examples,
        batches=len(problem.batches),
        loss=problem.loss(),
        gradient_norm=float(gradient.norm()),
        dtype=str(problem.dtype).removeprefix("torch."),
        mode=mode,
        seed=seed,
        curvature=curvature,
        optimizer=facts,
        preconditioned=P is not None and not P.is_identity,
        unreached=problem.unreached,
        notes=notes,
    )
    effort = QUICK if quick else THOROUGH
    _measure_curvatures(m, problem, P if m.preconditioned else None, effort, limit, seed, progress)
    if optimizer is not None:
        m.edge = _edge(m, problem, optimizer, seed)
    hessian = m.figures.get("hessian")
    if hessian is not None and m.preconditioned and P is not None:
        over = P.over(problem.parameters, problem.names)
        m.row_norms = row_norm_correlation(hessian.squared_row_norms(), over, seed=seed)
    m.layers = layer_conditioning(problem)
    if problem.size > limit:
        # The first gradient warmed up; a second one is what a gradient costs.
        before = time.perf_counter()
        problem.gradient()
        gradient_seconds = min(gradient_seconds, time.perf_counter() - before)
    m.gradient_seconds = gradient_seconds
    m.seconds = time.perf_counter() - started
    return m


def _problem(
    model: torch.nn.Module, loss_fn: Any, data: Any, notes: list[str], limit: int, *, dtype: Any, **rest: Any
) -> Problem:
    """The problem in the dtype asked for; unless asked, in float64 where the spectrum is computed whole."""
    problem = Problem(model, loss_fn, data, dtype=dtype, **rest)
    if dtype is None and problem.size <= limit and problem.dtype == torch.float32 and problem.device.type != "mps":
        double = Problem(model, loss_fn, problem.batches, dtype=torch.float64, **rest)
        try:
            double.gradient()
        except (RuntimeError, TypeError) as error:
            notes.append(f"Measured in float32: in float64 the model says “{str(error).splitlines()[0][:120]}”.")
        else:
            return double
    return problem


def _measure_curvatures(
    m: Measurements,
    problem: Problem,
    P: Diagonal | None,
    effort: Effort,
    limit: int,
    seed: int,
    progress: Progress | None,
) -> None:
    kinds: list[tuple[str, type[CurvatureOperator], Effort]] = []
    if m.curvature == "hessian":
        kinds.append(("hessian", Hessian, effort))
    # κ(ρ) is shown for the Hessian; beside it only a trace of Gauss-Newton is wanted, one product a direction.
    trace_only = replace(effort, probes=effort.trace_probes, probe_steps=1)
    kinds.append(("gauss_newton", GaussNewton, trace_only if kinds else effort))
    for name, kind, spend in kinds:
        try:
            with problem:
                _measure_curvature(m, name, kind(problem), P, spend, limit, seed, progress)
        except OutputUnknownError as error:
            if m.curvature == "gauss-newton":
                raise
            m.notes.append(f"κ̄ of Gauss-Newton and κ_eff are missing: {error}.")


def _measure_curvature(
    m: Measurements,
    name: str,
    operator: CurvatureOperator,
    P: Diagonal | None,
    effort: Effort,
    limit: int,
    seed: int,
    progress: Progress | None,
) -> None:
    variants: dict[str, Any] = {name: operator}
    if P is not None:
        variants[f"{name}_preconditioned"] = operator.preconditioned(P)
    for key, variant in variants.items():
        expected = operator.size if operator.size <= limit else _expected(effort, key)
        _report(operator, key, expected, progress)
        figures = conditioning(variant, effort=effort, dense_limit=limit, effective=name == "gauss_newton", seed=seed)
        if operator.positive_semidefinite and figures.smallest.value < -1e-3 * abs(figures.largest.value):
            m.notes.append(
                "The loss is not convex in the network's output: Gauss-Newton has negative eigenvalues here, and κ̄ and "
                "κ_eff lose their meaning."
            )
        m.figures[key] = figures
    m.products += operator.products


def _expected(effort: Effort, key: str) -> int:
    products = effort.extremes + effort.probes * effort.probe_steps
    return products + (effort.gradient_steps if key.startswith("gauss") else 2 * effort.count)


def _report(operator: CurvatureOperator, stage: str, expected: int, progress: Progress | None) -> None:
    if progress is None:
        return
    label, start = stage.replace("_", " "), operator.products
    progress(label, 0, expected)
    operator.on_product = lambda: progress(label, operator.products - start, expected)


def _edge(m: Measurements, problem: Problem, optimizer: Any, seed: int) -> EdgeRatio:
    figures = m.of("hessian" if m.curvature == "hessian" else "gauss_newton")
    assert figures is not None
    operator = Hessian(problem) if m.curvature == "hessian" else GaussNewton(problem)
    return edge_ratio(problem, optimizer, largest=figures.largest, curvature=operator, seed=seed)


def _facts(optimizer: Any) -> OptimizerFacts:
    shown = (bool, int, float, str)
    groups = []
    for group in optimizer.param_groups:
        facts: dict[str, Any] = {"parameters": sum(p.numel() for p in group["params"])}
        for key, value in group.items():
            if isinstance(value, torch.Tensor):
                facts[key] = float(value)
            elif isinstance(value, tuple | list) and key != "params":
                facts[key] = [float(x) for x in value]
            elif isinstance(value, shown):
                facts[key] = value
        groups.append(facts)
    return OptimizerFacts(type(optimizer).__name__, groups)


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
