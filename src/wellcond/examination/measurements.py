"""Everything that an examination measures, in one place, before anything is concluded from it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from timeit import timeit
from typing import Any

import torch

from wellcond.condition_numbers import Conditioning, Effort, conditioning
from wellcond.curvature import CurvatureOperator, GaussNewton, Hessian, OutputUnknownError
from wellcond.examination.progress import Course, Progress
from wellcond.examination.prospects import products_planned, prospects, scaled_rows
from wellcond.examination.row_norms import RowNormCorrelation, row_norm_correlation
from wellcond.examination.step_sizes import StepSizes, step_sizes
from wellcond.examination.subject import Settings, Subject
from wellcond.forecasts import Forecast
from wellcond.linalg import norm
from wellcond.normalization import LayerConditioning, NoLayersError, layer_conditioning
from wellcond.parameters import flatten
from wellcond.preconditioners import steps_of
from wellcond.problem import Problem, raised_by_us
from wellcond.stability import EdgeRatio, edge_ratio, takes_products


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
        dtype, settings: how it was measured.
        optimizer: None if the run has none.
        preconditioned: whether the optimizer's P is more than the identity.
        figures: by curvature: "hessian", "gauss_newton", and each with "_preconditioned".
        edge: the edge ratio; None without an optimizer.
        row_norms: of theory 3.2; None without a preconditioner or a Hessian.
        layers: conditioning of each linear layer.
        step_sizes: the learning rate and weight decay that each parameter gets; None without an optimizer.
        forecast: predicted losses of the run as it is and under other preconditioners; None where there is none, and
            in a quick examination.
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
    settings: Settings
    optimizer: OptimizerFacts | None
    preconditioned: bool
    figures: dict[str, Conditioning] = field(default_factory=dict)
    edge: EdgeRatio | None = None
    row_norms: RowNormCorrelation | None = None
    layers: list[LayerConditioning] = field(default_factory=list)
    step_sizes: StepSizes | None = None
    forecast: Forecast | None = None
    unreached: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    products: int = 0
    seconds: float = 0.0
    gradient_seconds: float = 0.0

    def of(self, curvature: str) -> Conditioning | None:
        """The figures of a curvature under the optimizer's P, which are the plain ones where P is the identity."""
        return self.figures.get(f"{curvature}_preconditioned" if self.preconditioned else curvature)


def measure(subject: Subject, settings: Settings, progress: Progress | None = None) -> Measurements:
    """Measure a training run, each figure as far as it can be.

    Raises:
        TypeError, ValueError: for what can't be measured at all, with the remedy.
        Exception: whatever the user's code raises in the loss and its first gradient.
    """
    started = time.perf_counter()
    problem, optimizer, attempt = subject.problem, subject.optimizer, subject.failures.attempt
    m = first_order(subject, settings)
    # The Hessian where it is asked for, and Gauss-Newton, of which κ̄ and κ_eff are made; beside a Hessian only a
    # trace of it is wanted, one product a direction.
    effort = settings.effort
    efforts: list[tuple[type[CurvatureOperator], Effort]] = [(GaussNewton, effort)]
    if settings.curvature == "hessian":
        trace_only = replace(effort, probes=effort.trace_probes, probe_steps=1)
        efforts = [(Hessian, effort), (GaussNewton, trace_only)]
    course = Course(_plan(m, efforts, optimizer), progress)
    for kind, spent in efforts:
        try:
            _measure_curvature(m, kind(problem), subject, spent, course)
        except OutputUnknownError as error:
            if settings.curvature == "gauss-newton":
                raise
            m.notes.append(f"κ̄ of Gauss-Newton and κ_eff are missing: {error}.")
    attempt("the forecast", partial(_look_ahead, m, subject, course))
    course.finish()
    attempt("effective learning rates", partial(_step_sizes, m, subject))
    with contextlib.suppress(NoLayersError):
        layers = partial(layer_conditioning, problem)
        m.layers = attempt("the conditioning of layers", layers, let=(NoLayersError,)) or []
    again = attempt("the time of a gradient", partial(timeit, problem.gradient, number=1))
    m.gradient_seconds = again or m.gradient_seconds
    m.seconds = time.perf_counter() - started
    return m


def first_order(subject: Subject, settings: Settings) -> Measurements:
    """Sizes, loss and gradient: all but curvature and layers."""
    problem, P, started = subject.problem, subject.P, time.perf_counter()
    gradient = problem.gradient()
    return Measurements(
        model=type(problem.model).__name__,
        parameters=problem.size,
        examples=problem.examples,
        batches=len(problem.batches),
        loss=problem.loss(),
        gradient_norm=norm(gradient),
        dtype=str(problem.dtype).removeprefix("torch."),
        settings=settings,
        optimizer=None if subject.optimizer is None else _facts(subject.optimizer),
        preconditioned=P is not None and not P.is_identity,
        unreached=problem.unreached,
        notes=[*subject.notes],
        gradient_seconds=time.perf_counter() - started,
    )


def _measure_curvature(
    m: Measurements, operator: CurvatureOperator, subject: Subject, effort: Effort, course: Course
) -> None:
    """One kind of curvature, plain and preconditioned; the first kind measured also gives the edge ratio and the
    correlation with its row norms."""
    problem, P, settings, attempt = subject.problem, subject.P, m.settings, subject.failures.attempt
    hessian, name = isinstance(operator, Hessian), _NAMES[type(operator)]
    variants: dict[str, Any] = {name: operator}
    if m.preconditioned and P is not None:
        variants[f"{name}_preconditioned"] = operator.preconditioned(P)
    limit, seed = settings.dense_limit, settings.seed
    spectrum = partial(conditioning, effort=effort, dense_limit=limit, effective=not hessian, seed=seed)
    with problem:
        for key, variant in variants.items():
            course.enter(key.replace("_", " "), operator)
            part = f"the spectrum of {_CALLED[key]}"
            measured = attempt(part, partial(spectrum, variant), let=(OutputUnknownError,))
            if measured is not None:
                m.figures[key] = measured
        own = m.figures.get(key)
        if operator.positive_semidefinite and own and own.smallest.value < -1e-3 * abs(own.largest.value):
            m.notes.append(
                "The loss is not convex in the network's output: Gauss-Newton has negative eigenvalues here, and κ̄ and "
                "κ_eff lose their meaning."
            )
        if m.edge is None and own and subject.optimizer is not None:
            course.enter("edge ratio", operator)
            edge = partial(edge_ratio, problem, subject.optimizer, largest=own.largest, curvature=operator)
            m.edge = attempt("the edge ratio", partial(edge, max_products=effort.extremes, seed=seed))
    plain = m.figures.get(name)
    if hessian and m.preconditioned and plain is not None:
        correlation = partial(row_norm_correlation, plain.squared_row_norms(), _root_v(problem, subject.optimizer))
        rows = partial(correlation, rounding=plain.rounding, seed=settings.seed)
        m.row_norms = attempt("the correlation of √v with row norms", rows)
    m.products += operator.products


def _look_ahead(m: Measurements, subject: Subject, course: Course) -> None:
    """A forecast on Gauss-Newton, or on the Hessian where that is all there is; too much for a quick examination."""
    measured = "hessian" if "hessian" in m.figures else "gauss_newton"
    variants = {"plain": measured, "preconditioned": f"{measured}_preconditioned"}
    figures = {variant: m.figures[name] for variant, name in variants.items() if name in m.figures}
    if m.settings.quick or "plain" not in figures:
        return
    H = (Hessian if measured == "hessian" else GaussNewton)(subject.problem)
    curvature = (GaussNewton if "gauss_newton" in m.figures else Hessian)(subject.problem)
    try:
        with _refusals_noted(m, "There is no forecast"):
            course.enter("scaled rows", H)
            scaled = scaled_rows(H, figures["plain"], m.settings.seed)
            course.enter("forecast", curvature)
            m.forecast = prospects(curvature, subject.optimizer, subject.P, figures, scaled, m.edge)
    finally:
        m.products += H.products + curvature.products


def _step_sizes(m: Measurements, subject: Subject) -> None:
    if subject.optimizer is not None:
        with _refusals_noted(m, "Effective learning rates are missing"):
            m.step_sizes = step_sizes(subject.problem, subject.optimizer)


@contextlib.contextmanager
def _refusals_noted(m: Measurements, what: str) -> Iterator[None]:
    """What this package refuses becomes a note; all else that is raised goes on."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not raised_by_us(error):
            raise
        m.notes.append(f"{what}: {error}.")


def _root_v(problem: Problem, optimizer: Any) -> torch.Tensor:
    """√v in the problem's order; NaN where there is none."""
    known = {id(step.parameter): step.root_v for step in steps_of(optimizer)}
    pieces = [(known[id(p)], p) for p in problem.parameters]
    return flatten([torch.full(p.shape, torch.nan, device=p.device) if v is None else v for v, p in pieces])


_CALLED = {
    "hessian": "the Hessian",
    "hessian_preconditioned": "PᵀHP",
    "gauss_newton": "Gauss-Newton",
    "gauss_newton_preconditioned": "PᵀGP",
}
_NAMES: dict[type[CurvatureOperator], str] = {Hessian: "hessian", GaussNewton: "gauss_newton"}


def _plan(m: Measurements, efforts: list[tuple[type[CurvatureOperator], Effort]], optimizer: Any) -> dict[str, int]:
    """Products of each stage, in order."""
    planned: dict[str, int] = {}
    whole, n = m.parameters <= m.settings.dense_limit, m.parameters
    for kind, effort in efforts:
        name, extremes = _NAMES[kind].replace("_", " "), min(effort.extremes, n)
        sampled = extremes + effort.probes * effort.probe_steps
        sampled += effort.gradient_steps if kind.positive_semidefinite else 0
        planned[name] = n if whole else sampled
        if m.preconditioned:  # a whole PᵀCP is made from the whole C
            planned[f"{name} preconditioned"] = 0 if whole else sampled
        if optimizer is not None and "edge ratio" not in planned:
            planned["edge ratio"] = extremes if takes_products(optimizer) else 0
    if not m.settings.quick:
        planned |= products_planned(n, m.preconditioned, optimizer is not None)
    return planned


def _facts(optimizer: Any) -> OptimizerFacts:
    groups = []
    for group in optimizer.param_groups:
        facts: dict[str, Any] = {"parameters": sum(p.numel() for p in group["params"])}
        for key, value in group.items():
            if isinstance(value, torch.Tensor):
                facts[key] = value.tolist()
            elif isinstance(value, tuple | list | bool | int | float | str) and key not in ("params", "param_names"):
                facts[key] = value
        groups.append(facts)
    return OptimizerFacts(type(optimizer).__name__, groups)
