"""Does the gradient's noise hide what there is to win?"""

from __future__ import annotations

from torch.utils.data import DataLoader, default_collate

from wellcond.display import number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.noise import noise_scale
from wellcond.examination.remedies import loss_code

FAR_ABOVE = 10.0
"""Noise over signal, squared: a step follows the gradient to a third at most. Near a minimum that is always so."""

SAVES = 0.2
"""The share of the loss that steps of four batches must save: four times the work for less is no advice, and a little
is won by averaging in any run."""

BATCHES = 4


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The noise scale against the batch, and what steps on four batches' mean gradient would do."""
    if subject.optimizer is None:
        return None
    scale = noise_scale(subject.problem)
    if scale is None or not scale.ratio.defined:
        return None
    evidence = {"noise_scale": scale.examples, "noise_over_signal": scale.ratio}
    b = number(round(scale.batch))  # a harmonic mean where batches differ
    title = f"At batch size {b} the squared gradient noise is {scale.ratio} times the squared signal."
    text = f"Noise and signal are equally large at a batch size of {scale.examples}."
    if scale.ratio.low > 1:
        least = number(scale.ratio.low)
        title = f"Gradient noise exceeds the signal at batch size {b}, by a factor of at least {least} (squared)."
    elif scale.ratio.unresolved:
        title = f"It is not known whether the gradient noise exceeds the signal at batch size {b}."
        text = "The mean of the measured gradients can't be distinguished from zero; measure on more batches."
    if scale.ratio.low <= 1 or not (scale.ratio.unresolved or scale.ratio.value > FAR_ABOVE):
        return Finding("gradient_noise", Severity.GOOD, title, text, evidence)
    effect = subject.trials.effect(lambda run: run, batches_a_step=BATCHES)
    if not effect or not effect.saves(SAVES, now=m.loss):
        text += (
            f" In a trial the loss rises with steps of {BATCHES} batches too: fix something else first."
            if effect and effect.saves(SAVES)
            else f" Steps of {BATCHES} batches save little in a trial: near a minimum noise is always more than signal."
        )
        return Finding("gradient_noise", Severity.GOOD, title, text, evidence)
    text += (
        " Steps shake the parameters by learning rate times noise, which keeps the loss above its minimum and hides "
        f"the curvature's flat directions: on copies of the run, as many steps on {BATCHES} batches each end lower. "
        "A smaller learning rate, falling towards the end, or averaged weights win the same more slowly."
    )
    return Finding("gradient_noise", Severity.NOTICE, title, text, evidence, _code(subject), effect)


def _code(subject: Subject) -> str:
    data = subject.run.data
    if isinstance(data, DataLoader) and data.batch_size is not None:
        now, collate = data.batch_size, ", collate_fn=data.collate_fn" * (data.collate_fn is not default_collate)
        larger = f"torch.utils.data.DataLoader(data.dataset, {BATCHES * now}, shuffle=True{collate})"
        return f"data = {larger}  # batches of {BATCHES * now}, now {now}"
    return (
        "for i, batch in enumerate(data):\n"
        f"    ({loss_code(subject.run)} / {BATCHES}).backward()\n"
        f"    if i % {BATCHES} == {BATCHES - 1}:   # one step per {BATCHES} batches\n"
        "        optimizer.step()\n"
        "        optimizer.zero_grad()"
    )
