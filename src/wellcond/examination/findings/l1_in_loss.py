"""Is there an L1 penalty in the loss, under an adaptive optimizer? (theory, sections 4.3 and 4.5)."""

from __future__ import annotations

from functools import partial

from torch import nn

from wellcond.display import listed, number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.kinks import l1_strengths
from wellcond.examination.remedies import shown
from wellcond.linalg import Estimate
from wellcond.penalties import L1
from wellcond.problem import TrainingRun
from wellcond.steps import regularize
from wellcond.trials import loss_of


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The strength of an L1 penalty that the gradient shows, and the weights that it has made zero."""
    if subject.optimizer is None or not m.preconditioned:
        return None
    try:
        found = l1_strengths(subject.double or subject.problem, m.settings.seed)
    except ValueError:  # the loss is not finite with some weights at zero
        return None
    if not found:
        return None
    strengths = {name: float(f"{e.value:.3g}") for name, e in found.items()}
    zero, total = _zeros(subject.problem.model, strengths)
    evidence = {"exact_zeros": Estimate.exactly(zero, f"exact count of {total:,}")}
    evidence |= {f"strength of {name}": e for name, e in list(found.items())[:8]}
    of = " to ".join(dict.fromkeys(number(t) for t in (min(strengths.values()), max(strengths.values()))))
    name, some = type(subject.optimizer).__name__, listed(list(found))
    title = f"The loss holds an L1 penalty of strength {of} on {some}: {zero:,} of {total:,} weights are zero."
    text = (
        f"A gradient makes no zeros, and {name} divides this one by √v: the penalty is strong where gradients are "
        "small and weak where they are large. The proximal step makes zeros. In the original space it has the strength "
        "that the loss has; in the intrinsic one, where L2 is AdamW's, start at the root of that and go down "
        "(docs/l1-with-adam.md)."
    )
    effect = subject.trials.effect(
        partial(_by_prox, strengths=strengths),
        f"share of these weights that are not zero after {subject.trials.steps} more steps",
        read=partial(_kept, strengths=strengths),
    )
    return Finding("l1_in_loss", Severity.NOTICE, title, text, evidence, _code(subject, strengths), effect)


def _zeros(model: nn.Module, names: dict[str, float]) -> tuple[int, int]:
    held = [p for name, p in model.named_parameters() if name in names]
    return sum(int((p == 0).sum()) for p in held), sum(p.numel() for p in held)


def _kept(run: TrainingRun, strengths: dict[str, float]) -> float:
    zero, total = _zeros(run.model, strengths)
    return 1 - zero / total


def _by_prox(run: TrainingRun, strengths: dict[str, float]) -> TrainingRun:
    """Taken out of the loss, by subtracting it, and put on by proximal steps."""
    model, optimizer = run.model, run.optimizer
    assert optimizer is not None
    parameters = dict(model.named_parameters())
    for strength in dict.fromkeys(strengths.values()):
        held = [parameters[name] for name, t in strengths.items() if t == strength]
        regularize(optimizer, L1(strength), space="original", params=held)

    def loss(model: nn.Module, batch: object) -> object:
        held = dict(model.named_parameters())
        return loss_of(run, batch) - sum(t * held[name].abs().sum() for name, t in strengths.items())

    return TrainingRun(model, None, run.data, optimizer, loss)  # type: ignore[arg-type]


def _code(subject: Subject, strengths: dict[str, float]) -> str:
    lines = ["# without the L1 term in the loss:"]
    for strength in dict.fromkeys(strengths.values()):
        names = [name for name, t in strengths.items() if t == strength]
        which = '"all"' if names == subject.problem.names else f"[{', '.join(map(repr, names))}]"
        lines.append(
            f"wc.regularize(optimizer, wc.penalties.L1({shown(strength)}), space='original', model=model, "
            f"params={which})"
        )
    return "\n".join(lines)
