"""Does the optimizer's ε swallow coordinates? (theory, section 3.3)."""

from __future__ import annotations

import inspect
from functools import partial

import torch
from torch import Tensor

from wellcond.display import number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.remedies import set_code, set_groups
from wellcond.linalg import Estimate
from wellcond.preconditioners import steps_of
from wellcond.problem import TrainingRun

MANY = 0.1
"""Of the coordinates that have a gradient: for fewer the optimizer is what it is called."""

MOST = 0.5
"""From here on it is gradient descent with rate lr/ε for more coordinates than not. In both cases a trial decides: near
a minimum all gradients are small, and an ε above them calms the steps."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The share of coordinates with 0 < √v < ε among those with √v > 0."""
    optimizer = subject.optimizer
    if optimizer is None or not all("eps" in group for group in optimizer.param_groups):
        return None
    roots = _roots_over_eps(optimizer)
    if roots is None or not len(roots):
        return None
    swallowed = float((roots < 1).double().mean())
    how = f"exact count over {len(roots):,} coordinates that have had a gradient"
    evidence = {"swallowed": Estimate.exactly(swallowed, how)}
    eps = float(optimizer.param_groups[0]["eps"])
    name = type(optimizer).__name__
    if swallowed < MANY:
        where = f"in {1 - swallowed:.1%} of the coordinates that have a gradient" if swallowed else "everywhere"
        title = f"ε is negligible: {eps:g} of {name} is below √v {where}."
        return Finding("epsilon", Severity.GOOD, title, "There the step is preconditioned.", evidence)
    title = f"ε = {eps:g} of {name} is above √v in {swallowed:.1%} of the coordinates that have a gradient."
    text = (
        "There the step is not divided by the size of the gradient but by ε, as in gradient descent with a rate of "
        f"lr/ε. Half of these coordinates have a √v under {number(float(roots.median()) * eps)}. "
        "Coordinates that never had a gradient are not counted."
    )
    new = _smaller(optimizer, roots)
    factor, effect = subject.trials.best({c: partial(_set, eps=new, factor=c) for c in _factors(optimizer)})
    if effect and not effect.saves():
        text += f" A trial with ε = {new:g} saves little, or ends higher: nothing is to be done."
        return Finding("epsilon", Severity.GOOD, title, text, evidence)
    severity = Severity.SEVERE if effect and swallowed > MOST else Severity.NOTICE
    return Finding("epsilon", severity, title, text, evidence, set_code(optimizer, factor, eps=new), effect)


def _set(run: TrainingRun, eps: float, factor: float) -> None:
    set_groups(run, lambda group: {"eps": eps, "lr": group["lr"] * factor})


def _factors(optimizer: torch.optim.Optimizer) -> list[float]:
    """For the learning rates: one set for steps that a large ε shortens is too large without; then the class's own."""
    now, default = (float(x) for x in (optimizer.param_groups[0]["lr"], _default(optimizer, "lr")))
    return [1.0, default / now] if now > default else [1.0]


def _default(optimizer: torch.optim.Optimizer, key: str) -> float:
    return float(inspect.signature(type(optimizer)).parameters[key].default)


def _roots_over_eps(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """√v/ε as the step compares them, where √v > 0, float64; None for optimizers whose ε is part of something else."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = []
    for step in steps_of(optimizer):
        root, eps = step.root_v, float(groups[id(step.parameter)]["eps"])
        if isinstance(optimizer, torch.optim.Adamax):  # the infinity norm of |g| + ε
            root = None if root is None else root - eps
        if isinstance(optimizer, torch.optim.Adadelta):
            eps = eps**0.5
        if root is not None and eps > 0:
            found.append((root[root > 0] / eps).reshape(-1).cpu())
    return torch.cat(found) if found else None


def _smaller(optimizer: torch.optim.Optimizer, roots: Tensor) -> float:
    """The ε that the class has by itself where that is under a hundredth of nearly every √v, else such a one."""
    sample = roots[:: 1 + len(roots) // 2**20].sort().values
    below = float(sample[len(sample) // 20]) / 100  # over the present ε
    small = float(optimizer.param_groups[0]["eps"]) * below ** (2 if isinstance(optimizer, torch.optim.Adadelta) else 1)
    default = _default(optimizer, "eps")
    return default if default <= small else float(f"{small:.0e}")
