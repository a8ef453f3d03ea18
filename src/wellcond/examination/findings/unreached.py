"""Are there parameters that training does not train?"""

from __future__ import annotations

from functools import partial

from wellcond.display import begun, capitalized
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.linalg import Estimate
from wellcond.preconditioners import unwrapped_optimizer
from wellcond.problem import TrainingRun
from wellcond.trials import Effect, NoEffect

SHOWN = 8
"""Names that are listed."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """Trainable parameters without a path to the loss, those that the optimizer does not have, and frozen ones that it
    has. A frozen part that the optimizer does not have is meant, and not mentioned."""
    frozen = _frozen(subject)
    counted = {"unreached": m.unreached, "not in the optimizer": subject.left_out, "frozen in the optimizer": frozen}
    words = [
        ("the loss does not reach", "Left over, or something on their way to the loss is detached."),
        ("the optimizer does not have", "They want a gradient, which is computed and never used."),
        ("the optimizer has, frozen,", "Without a gradient it passes over them."),
    ]
    told = [(names, what, why) for names, (what, why) in zip(counted.values(), words, strict=True) if names]
    if not told:
        return None
    title = "; ".join(
        f"{what} {len(names)} parameter{'s' * (len(names) > 1)} ({begun(names, SHOWN)})" for names, what, why in told
    )
    evidence = {what: Estimate.exactly(len(names), "exact count") for what, names in counted.items()}
    text = " ".join(why for *_, why in told)
    if m.unreached:
        text += " What the loss does not reach counts in every mean over parameters, with no curvature."
    remedy = [f"model.get_parameter({name!r}).requires_grad_(False)" for name in m.unreached[:SHOWN]]
    effect: Effect | NoEffect | None = None
    if subject.left_out:
        remedy.append(
            'optimizer.add_param_group({"params": [model.get_parameter(name) for name in '
            f"{subject.left_out[:SHOWN]}]}}){'  # and so on' * (len(subject.left_out) > SHOWN)}"
        )
        effect = subject.trials.effect(partial(_add, names=subject.left_out))
    else:
        text += " What has no gradient trains no better in any trial: there was nothing to try."
    if frozen:
        remedy += [
            f"model.get_parameter({name!r}).requires_grad_(True)  # if it is to be trained" for name in frozen[:SHOWN]
        ]
    return Finding("unreached", Severity.NOTICE, f"{capitalized(title)}.", text, evidence, "\n".join(remedy), effect)


def _frozen(subject: Subject) -> list[str]:
    if subject.run.optimizer is None:
        return []
    held = {id(p) for g in unwrapped_optimizer(subject.run.optimizer).param_groups for p in g["params"]}
    named = subject.problem.model.named_parameters()
    return [name for name, p in named if id(p) in held and not p.requires_grad]


def _add(run: TrainingRun, names: list[str]) -> None:
    unwrapped_optimizer(run.optimizer).add_param_group({"params": [run.model.get_parameter(name) for name in names]})
