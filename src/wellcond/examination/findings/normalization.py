"""Would training from new weights win far more with a normalization layer? (theory, section 5.2)."""

from __future__ import annotations

import math

from torch import nn

from wellcond.display import capitalized, number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.remedies import anew_code, what_if_code
from wellcond.hooks import carried_by
from wellcond.linalg import Estimate
from wellcond.preconditioners import BatchNormPreconditioner, unwrapped_optimizer
from wellcond.problem import parameter_kinds
from wellcond.steps import GivenP
from wellcond.trials import CHANGES, Effect

PAYS = 1.5
"""Times what training wins of the loss without it, in as many steps. In 10 healthy networks without normalization it is
1.2 at most, in networks of 8 and 12 layers on digits 1.7 to 40, by medians."""

HARDLY_TRAINS = 10.0
"""Times: what is won without a normalization is a tenth of what is there to win."""

FEWEST = 8
"""Examples in a batch, under which batch norm is not tried: with 2 and 4 it ended above the plain network
(docs/normalization.md)."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """What some steps from new weights win of the loss, without a normalization and with one, each at its best rate."""
    trials = subject.trials
    # Ten steps favor what starts fast.
    if m.settings.quick or _is_normalized(subject) or all(layer.is_input for layer in m.layers):
        return None
    start = trials.loss_of_new_weights()
    if start is None:
        return None
    evidence = {"loss_of_new_weights": Estimate.exactly(start, "one draw of the weights, before any step")}
    # A loss that is not negative can fall by no more than all of it.
    if 0 <= m.loss <= (1 - 1 / PAYS) * start:
        won = (start - m.loss) / start
        title = f"Trains well without normalization: from new weights the loss fell by {won:.0%}."
        text = f"No normalization could make it fall {PAYS:g} times as far, so none was tried."
        return Finding("normalization", Severity.GOOD, title, text, evidence)
    found = _tried(subject)
    if found is None:
        return None
    (change, effect), steps = found, trials.steps_from_new_weights
    # The ends of the intervals that speak against the change.
    without, wins = max(0.0, start - effect.without.low), start - effect.with_remedy.high
    times = wins / without if without > 0 else math.inf
    evidence |= {"loss_without": effect.without, "loss_with": effect.with_remedy}
    if not effect.better or wins <= 0 or times < PAYS:
        title = f"{capitalized(change)} makes no large difference to training from new weights."
        text = f"It wins less than {PAYS:g} times as much of the loss in {steps} steps, or that can't be told."
        return Finding("normalization", Severity.GOOD, title, text, evidence)
    # Over few steps what starts slowly looks as if it did not train: 37 times for 5 with six layers of sigmoids.
    severe = times >= HARDLY_TRAINS and steps == trials.steps
    much = f"win at least {number(times)} times as much of the loss" if without else "win some of the loss, else none"
    title = f"There is no normalization layer, and with {change} {steps} steps from new weights {much}."
    text = (
        "Signals and gradients that shrink, grow or get a common mean from layer to layer leave the curvature of some "
        "layers far from that of others, and no one learning rate fits them. A normalization takes mean and scale away "
        f"in front of each activation. From {number(start)} the loss fell to {effect.without} without it and to "
        f"{effect.with_remedy} with it, each at the best of some learning rates."
    )
    severity = Severity.SEVERE if severe else Severity.NOTICE
    return Finding("normalization", severity, title, text, evidence, _code(subject, change), effect)


def _is_normalized(subject: Subject) -> bool:
    """By a layer, in its weights or in its gradient."""
    model, optimizer = subject.problem.model, subject.run.optimizer
    if parameter_kinds.normalization_layers(model) or parameter_kinds.normalized(model):
        return True
    carried = carried_by(unwrapped_optimizer(optimizer)) if optimizer is not None else []
    return any(isinstance(held, GivenP) and isinstance(held.P, BatchNormPreconditioner) for held in carried)


def _tried(subject: Subject) -> tuple[str, Effect] | None:
    """The best of the changes that suit the batches, and its effect."""
    few = subject.problem.examples < FEWEST * len(subject.problem.batches)
    for changes in ([] if few or subject.problem.mode == "eval" else ["batch norm"], ["layer norm", "BNP"]):
        effects = {change: effect for change in changes if (effect := subject.trials.from_new_weights(change))}
        if effects:
            return min(effects.items(), key=lambda tried: tried[1].with_remedy.value)
    return None


def _code(subject: Subject, change: str) -> str:
    """The change, new weights and an optimizer of them."""
    lines = []
    if change != "BNP":
        after = CHANGES[change](subject.problem).after
        if after:
            lines.append("after = {" + ", ".join(f"{name!r}: {_written(norm)}" for name, norm in after.items()) + "}")
            lines += [
                "for name, normalization in after.items():",
                '    parent, _, child = name.rpartition(".")',
                "    both = nn.Sequential(model.get_submodule(name), normalization)",
                "    setattr(model.get_submodule(parent), child, both)",
            ]
        else:
            lines += [f"# {change} in front of each hidden activation:", *what_if_code(subject.run, change)]
    lines += anew_code(subject.optimizer, subject.trials.best_rate(change))
    if change == "BNP":
        lines.append("wc.precondition(optimizer, wc.BatchNormPreconditioner(model))")
    return "\n".join(lines)


def _written(norm: nn.Module) -> str:
    """As one writes it."""
    if isinstance(norm, nn.GroupNorm):
        return f"nn.GroupNorm({norm.num_groups}, {norm.num_channels})"
    width = norm.normalized_shape[0] if isinstance(norm, nn.LayerNorm) else norm.num_features
    return f"nn.{type(norm).__name__}({width})"
