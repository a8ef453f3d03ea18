"""Do all layers move at a like pace?"""

from __future__ import annotations

import itertools
import math
import statistics
from functools import partial

from wellcond.display import begun, number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.remedies import shown
from wellcond.linalg import Estimate
from wellcond.preconditioners import unwrapped_optimizer
from wellcond.problem import TrainingRun, parameter_kinds

STANDS_OUT = 30.0
"""Times the others' median, or as much under it. Layers of healthy networks, of other widths and depths, lie within ten
times of each other."""

FAST = 0.1
"""A tenth of a weight in a step, far faster than the others: nothing that the others learn has a meaning by then. Still
never severe: in 32 planted cases (SGD and Adam, each layer of three, rates of its own 10 to 10,000 times too large) the
others adapted, and in 50 steps a smaller rate saved nothing."""

SMALL = 0.05
"""Root mean square of a weight times the root of its inputs, under which it counts as started from zero: that is 1 or
so where signals pass through. Such a tensor moves by many times itself because it must."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """‖Δp‖/‖p‖ of one step of a copy, of tensors with two or more dimensions, against the median of the others."""
    ratios = _ratios(subject)
    if len(ratios) < 2:
        return None
    out = _standing_out(ratios)
    if not out:
        return None
    some = out[:6]
    typical = statistics.median(e.value for name, e in ratios.items() if name not in out)
    told = begun([f"{name} by {ratios[name]}" for name in out], len(some))
    title = f"A step moves {told} of its size, and the other weights by {number(typical)}."
    text = (
        "What moves far faster than the rest is as good as random for it, and what moves far slower is as good as "
        "frozen. Gradients of very different size, a learning rate of its own that is off, or an initial size that is."
    )
    evidence = {f"update ratio of {name}": ratios[name] for name in some}
    evidence["others"] = Estimate.exactly(typical, "median of the other weights")
    moving = [name for name in out if ratios[name].value > 0]
    if not moving:
        text += " Nothing reaches it: no learning rate fixes that, and there is nothing to try."
        return Finding("update_ratio", Severity.NOTICE, title, text, evidence)
    wild = any(ratios[name].low > FAST for name in moving)
    # To the pace of the others; or, where that is slow, to a hundredth.
    targets = [typical] + ([FAST / 10] if wild and typical < FAST / 10 else [])
    rates = {target: {name: target / ratios[name].value for name in moving} for target in targets}
    target, effect = subject.trials.best({target: partial(_own_rates, factors=f) for target, f in rates.items()})
    if not effect or effect.saves():
        return Finding("update_ratio", Severity.NOTICE, title, text, evidence, _code(subject, rates[target]), effect)
    text += " In a trial a rate of its own saves little, or costs: "
    text += "what is wrong is not that alone." if wild else "leave it as it is."
    return Finding("update_ratio", Severity.NOTICE if wild else Severity.GOOD, title, text, evidence, "", effect)


def _ratios(subject: Subject) -> dict[str, Estimate]:
    """By name, over a few batches; without what started from zero, and without embeddings, of which a batch moves a few
    rows."""
    problem, steps = subject.problem, subject.trials.first_steps
    left_out = {id(p) for p in parameter_kinds.embeddings(problem.model)}
    named = zip(problem.names, problem.parameters, strict=True)
    outputs = {name: len(p) for name, p in named if p.ndim > 1 and id(p) not in left_out}
    found: dict[str, list[float]] = {}
    for tensor in itertools.chain(*steps):
        # rms·√inputs = ‖p‖/√outputs
        if tensor.name in outputs and tensor.norm > SMALL * math.sqrt(outputs[tensor.name]):
            found.setdefault(tensor.name, []).append(tensor.moved / tensor.norm)
    how = f"one step of a copy on each of {len(steps)} batches"
    return {name: Estimate(statistics.median(x), min(x), max(x), how) for name, x in found.items()}


def _standing_out(ratios: dict[str, Estimate]) -> list[str]:
    """Names of those far above or far below the median of the others."""
    fast, slow = [], []
    for name, ratio in ratios.items():
        others = [e.value for other, e in ratios.items() if other != name]
        if ratio.low > STANDS_OUT * statistics.median_high(others):
            fast.append(name)
        elif ratio.high < statistics.median_low(others) / STANDS_OUT:
            slow.append(name)
    if 2 * len(fast + slow) < len(ratios) or not (fast and slow):
        return fast + slow
    # Which half stands out from which: the fast one, if it is fast.
    return fast if max(ratios[name].value for name in fast) > FAST / 10 else slow


def _own_rates(run: TrainingRun, factors: dict[str, float]) -> None:
    """Each of these parameters in a group of its own, with its rate multiplied."""
    optimizer = unwrapped_optimizer(run.optimizer)
    for name, factor in factors.items():
        p = run.model.get_parameter(name)
        group = next(g for g in optimizer.param_groups if any(q is p for q in g["params"]))
        group["params"] = [q for q in group["params"] if q is not p]
        own = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        optimizer.param_groups.append({**own, "params": [p], "lr": group["lr"] * factor})
    optimizer.param_groups[:] = [g for g in optimizer.param_groups if g["params"]]


def _code(subject: Subject, factors: dict[str, float]) -> str:
    assert subject.optimizer is not None
    rate_of = {id(p): float(g["lr"]) for g in subject.optimizer.param_groups for p in g["params"]}
    now = {name: rate_of[id(subject.problem.model.get_parameter(name))] for name in factors}
    own = ", ".join(f"{name!r}: {now[name] * factor:.2g}" for name, factor in factors.items())
    return (
        f"own = {{{own}}}  # now {', '.join(dict.fromkeys(map(shown, now.values())))}\n"
        "for group in optimizer.param_groups:\n"
        '    group["params"] = [p for p in group["params"] if all(p is not model.get_parameter(n) for n in own)]\n'
        "for name, lr in own.items():\n"
        '    optimizer.add_param_group({"params": [model.get_parameter(name)], "lr": lr})'
    )
