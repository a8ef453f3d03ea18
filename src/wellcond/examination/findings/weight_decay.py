"""Does weight decay reach the parameters as it was meant? (theory, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.display import number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.remedies import built_code, shown
from wellcond.linalg import Estimate
from wellcond.penalties import L2
from wellcond.preconditioners import own_preconditioner_of, steps_of, unwrapped_optimizer
from wellcond.problem import TrainingRun
from wellcond.steps import regularize
from wellcond.trials import Effect

UNEVEN = 10.0
"""Between the 5 % and the 95 % quantile: an order of magnitude is another weight decay."""

IDLE = 1e-5
"""Of a parameter, a step: under it the decay takes less than 1 % in a thousand steps, and its spread doesn't matter."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The spread of α·τ·P_ii², what a step takes of each parameter, where AdamW takes α·τ of all."""
    optimizer = subject.optimizer
    if optimizer is None or not m.preconditioned:
        return None
    rates, uniform = _decay(optimizer)
    if rates is None:
        return None
    low, high = (float(rates[int(q * (len(rates) - 1))]) for q in (0.05, 0.95))
    spread, how = high / low, f"quantile over {len(rates):,} parameters with weight decay"
    evidence = {"decay_5": Estimate.exactly(low, how), "decay_95": Estimate.exactly(high, how)}
    evidence["decoupled"] = Estimate.exactly(uniform, "lr·τ")
    name = type(optimizer).__name__
    title = (
        f"Weight decay goes through the preconditioner of {name}: a step takes {number(low)} (5 % quantile) to "
        f"{number(high)} (95 %) of a parameter."
    )
    text = (
        f"{name} divides what is added to the gradient by √v too: parameters with small gradients decay most, by "
        f"another factor than the one that was set. Decoupled decay takes {number(uniform)} of each, a step."
    )
    if spread < UNEVEN or high < IDLE:
        return Finding("weight_decay", Severity.GOOD, title, text, evidence)
    trial = subject.trials.effect(_decouple)
    if trial:
        evidence |= {"loss_as_it_is": trial.without, "loss_decoupled": trial.with_remedy}
    figure = "95 % over 5 % quantile of the decay"
    effect = Effect(figure, Estimate.exactly(spread, how), Estimate.exactly(1.0, "the same for all"))
    text += " The strength that is right then is another one: decay that parameters with small gradients got is gone."
    return Finding("weight_decay", Severity.NOTICE, title, text, evidence, _code(optimizer), effect)


def _decay(optimizer: Optimizer) -> tuple[Tensor | None, float]:
    """α·τ·P_ii² of every parameter whose decay is in its gradient, rising, float64, and the largest lr·τ; None where
    there is none."""
    P = own_preconditioner_of(optimizer)
    rates, uniform = [], 0.0
    for step, scale in zip(steps_of(optimizer), P.scales, strict=True):
        if step.coupled > 0 and step.root_v is not None:
            rate = step.learning_rate * step.correction * step.coupled
            rates.append((rate * scale.square()).expand(step.parameter.shape).reshape(-1).cpu())
            uniform = max(uniform, step.learning_rate * step.coupled)
    return (torch.cat(rates).sort().values, uniform) if rates and uniform > 0 else (None, 0.0)


def _decouple(run: TrainingRun) -> None:
    """The same τ beside the gradient instead of in it."""
    optimizer = unwrapped_optimizer(run.optimizer)
    for group in optimizer.param_groups:
        strength = float(group["weight_decay"])
        if "decoupled_weight_decay" in group:
            group["decoupled_weight_decay"] = True
        elif strength > 0:
            group["weight_decay"] = 0
            regularize(optimizer, L2(strength), params=list(group["params"]))


def _code(optimizer: Optimizer) -> str:
    if type(optimizer) is torch.optim.Adam:
        return built_code(optimizer, torch.optim.AdamW)
    groups = optimizer.param_groups
    if "decoupled_weight_decay" in groups[0]:
        return built_code(optimizer, new=lambda _: {"decoupled_weight_decay": True})
    lines = [built_code(optimizer, new=lambda _: {"weight_decay": 0})]
    together = len({float(group["weight_decay"]) for group in groups}) == 1
    for i, group in enumerate(groups[:1] if together else groups):
        if group["weight_decay"]:
            which = '"all"' if together else f'optimizer.param_groups[{i}]["params"]'
            lines.append(
                f"wc.regularize(optimizer, wc.penalties.L2({shown(float(group['weight_decay']))}), params={which})"
            )
    return "\n".join(lines)
