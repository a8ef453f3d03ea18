"""Does the precision suffice, for the steps and for the curvature?"""

from __future__ import annotations

import torch

from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.remedies import built_code, examined_code, loss_code
from wellcond.linalg import Estimate
from wellcond.preconditioners import unwrapped_optimizer
from wellcond.problem import TrainingRun, move

HALF = (torch.bfloat16, torch.float16)

LOST = 0.5
"""Of the coordinates that have a gradient: more of the step is lost than is taken."""

SOME = 0.1
"""A step that is taken in nine coordinates of ten is still a step of nearly its length."""

NOISE = 0.1
"""Rounding in the gradient, relative to it: κ_eff and the forecast are about its weights on small eigenvalues, which
are far smaller than it."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """Steps rounded away in half precision; a gradient in float32 against float64."""
    return _lost_steps(subject) or _coarse_gradient(m, subject)


def _lost_steps(subject: Subject) -> Finding | None:
    problem = subject.problem
    halves = {n: p.dtype for n, p in zip(problem.names, problem.parameters, strict=True) if p.dtype in HALF}
    steps = subject.trials.first_steps if halves else []
    shares = []
    for taken in steps:
        pulled = sum(t.pulled for t in taken if t.name in halves)
        lost = sum(t.lost for t in taken if t.name in halves)
        shares += [lost / pulled] if pulled else []
    if not shares:
        return None
    shares.sort()
    how = f"count over one step of a copy on each of {len(shares)} batches"
    share = Estimate(shares[len(shares) // 2], shares[0], shares[-1], how)
    name = str(next(iter(halves.values()))).removeprefix("torch.")
    title = f"{share.value:.0%} of the coordinates of parameters in {name} don't move in a step: it is rounded away."
    text = (
        f"An update under half the spacing of {name} at the parameter leaves it where it is, however often it comes. "
        "Parameters in float32, computed with in half precision by autocast, take every step."
    )
    evidence = {"lost": share}
    if share.low <= SOME:
        return Finding("precision", Severity.GOOD, title, text, evidence)
    effect = subject.trials.effect(_in_float32)
    severity = Severity.SEVERE if share.low > LOST else Severity.NOTICE
    if effect and not effect.better:
        severity = Severity.NOTICE
        text += " On copies of the run it makes no clear difference yet."
    return Finding("precision", severity, title, text, evidence, _code(subject, name), effect)


def _in_float32(run: TrainingRun) -> TrainingRun:
    """The whole copy in float32, its optimizer's state and its batches too."""
    optimizer = unwrapped_optimizer(run.optimizer)
    run.model.float()
    if isinstance(run.loss_fn, torch.nn.Module):
        run.loss_fn.float()
    for state in optimizer.state.values():
        state |= {k: v.float() if isinstance(v, torch.Tensor) and v.dtype in HALF else v for k, v in state.items()}
    device = next(run.model.parameters()).device
    data = [move(batch, device, torch.float32) for batch in run.data]
    return TrainingRun(run.model, run.loss_fn, data, run.optimizer, run.loss)


def _code(subject: Subject, name: str) -> str:
    kind = type(subject.optimizer).__name__
    return (
        f"model = model.float()  # now {name}; and with it a {kind} whose state is in float32\n"
        f"{built_code(unwrapped_optimizer(subject.run.optimizer))}\n"
        "for batch in data:   # with inputs in float32\n"
        f"    with torch.autocast({subject.problem.device.type!r}, dtype=torch.{name}):\n"
        f"        value = {loss_code(subject.run)}\n"
        "    value.backward()\n"
        "    optimizer.step()\n"
        "    optimizer.zero_grad()"
    )


def _coarse_gradient(m: Measurements, subject: Subject) -> Finding | None:
    if subject.problem.dtype != torch.float32 or subject.double is None:
        return None
    exact = subject.double.batch_gradient(0)
    size = float(exact.norm())
    if not size > 0:
        return None
    noise = float((subject.problem.batch_gradient(0).double() - exact).norm()) / size
    how = "gradient of the first batch in float32 and in float64"
    evidence = {"gradient_rounding": Estimate.exactly(noise, how)}
    title = f"In float32 the gradient is off by {noise:.1%} of itself."
    if noise < NOISE:
        return None
    text = (
        "Rounding is as large as what is measured: κ_eff, the edge of the spectrum near zero and forecasts are about "
        "the rounding. Near a minimum, or with inputs of very different size, float32 is too coarse. "
        "It is about what is measured here, not about training: there is nothing to try."
    )
    given = examined_code(subject.run) + ", optimizer=optimizer" * (subject.run.optimizer is not None)
    return Finding("precision", Severity.NOTICE, title, text, evidence, f"wc.examine({given}, dtype=torch.float64)")
