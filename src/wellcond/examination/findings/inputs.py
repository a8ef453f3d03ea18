"""Are the inputs scaled and centered? (theory, section 5.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from wellcond.display import listed, number
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.remedies import anew_code, what_if_code
from wellcond.linalg import Estimate
from wellcond.normalization import LayerConditioning, Standardize, standardize
from wellcond.problem import Problem
from wellcond.trials import Network

WORTH_IT = 3.0
"""The bound on κ of the layer's Hessian block goes with κ(Ĥ)²: a factor of 3 here is about 10 there."""

SEVERE = 10.0
"""A factor of 100 there."""

FAR = 3.0
"""A feature whose mean is `FAR` spreads from zero is named as off-center: its mean square is ten times its variance.
One whose spread is as many times that of the middle one, or its inverse, is named as on a scale of its own."""

FEW = 4
"""Features that are named."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The layer that sees the data themselves and has most to win, as they are against standardized."""
    seeing = [layer for layer in m.layers if layer.is_input and layer.kappa.defined and layer.standardized.defined]
    if not seeing:
        return None
    layer = max(seeing, key=_gain)
    gain, features = _gain(layer), Features.of(layer, subject.problem.model)
    figures = f"κ of the first layer's extended inputs is {layer.kappa}; standardized it would be {layer.standardized}."
    evidence = {"kappa": layer.kappa, "centered": layer.centered, "standardized": layer.standardized}
    named = f"layer “{layer.name}”" if layer.name else "the model"
    if gain < WORTH_IT:
        text = f"Standardizing would improve κ of what {named} sees by less than a factor of {WORTH_IT:g}."
        return Finding("inputs", Severity.GOOD, f"The inputs are well scaled: {figures}", text, evidence)
    front = _standardization(subject.problem, layer)
    build = None if front is None else partial(_in_front, standardization=front[0])
    effect = subject.trials.of_network("standardize inputs", build)
    by_figures = Severity.SEVERE if gain >= SEVERE else Severity.NOTICE
    severity = by_figures.after(effect)
    if not effect and features.in_unit_interval:
        severity = Severity.NOTICE
    evidence |= features.evidence
    text = (
        f"Extended inputs are the matrix that {named} sees: one row per example, with a column of ones for its bias. "
        f"{features.words(layer)} The conditioning of the layer's Hessian block goes about with the square of κ, a "
        "guide to how many more steps gradient descent needs there."
    )
    if severity is not by_figures:
        if not effect:
            text += " The features are binary, or pixels between 0 and 1, which are often left as they are; not tried."
        elif effect.better is False:
            text += " But trained from new weights with standardized inputs the loss was higher: leave them."
        else:
            text += " But trained from new weights with standardized inputs the loss was hardly lower."
    title = f"The inputs are {features.cause(layer)}: {figures}"
    remedy = "" if effect and effect.better is False else _remedy(front, features, subject)
    return Finding("inputs", severity, title, text, evidence, remedy, effect)


@dataclass(frozen=True)
class Features:
    """The features that a layer sees: columns of the data, or channels.

    Attributes:
        unit: what one is called.
        mean, deviation: (d,), of each.
    """

    unit: str
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, layer: LayerConditioning, model: nn.Module) -> Features:
        """A convolution's columns are its channels at each position of the kernel, whose figures are averaged."""
        module = dict(model.named_modules()).get(layer.name)
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return cls("feature", layer.mean, layer.deviation)
        mean, deviation = (x.view(-1, module.weight[0, 0].numel()) for x in (layer.mean, layer.deviation))
        return cls("channel", mean.mean(1), deviation.square().mean(1).sqrt())

    @property
    def in_unit_interval(self) -> bool:
        """Whether all may be numbers between 0 and 1: σ² ≤ μ(1 − μ) holds for every such distribution."""
        slack = 1e-6  # of a zero-one feature both sides are equal
        return bool((self.deviation.square() <= self.mean * (1 - self.mean) + slack).all())

    @property
    def evidence(self) -> dict[str, Estimate]:
        """Mean and spread of those that stand out."""
        exact = "exact: one pass over the data in float64"
        found = {}
        for j in self.standing_out()[:FEW]:
            for what, x in (("mean", self.mean), ("spread", self.deviation)):
                found[f"{what} of {self.unit} {j}"] = Estimate.exactly(float(x[j]), exact)
        return found

    def standing_out(self) -> list[int]:
        """Off-center features, and those on scales of their own, the worst first; features that never vary are none."""
        varies = self.deviation > 0
        if not varies.any():
            return []
        middle = self.deviation[varies].median()
        scale = torch.where(varies, torch.maximum(self.deviation / middle, middle / self.deviation), 1.0)
        away = torch.where(varies, self.mean.abs() / self.deviation, 0.0)
        worst = torch.maximum(scale, away)
        return [j for j in worst.argsort(descending=True).tolist() if worst[j] >= FAR]

    def cause(self, layer: LayerConditioning) -> str:
        """In two words: their mean, their scales, or both, by what centering alone would do to κ."""
        off_center = layer.mean_share > 0.5 and layer.kappa.certain >= WORTH_IT * layer.centered.value
        if off_center and layer.centered.value < WORTH_IT * layer.standardized.value:
            return "off-center"
        spread = self.deviation[self.deviation > 0]
        if off_center or float(spread.max()) >= FAR * float(spread.min()):
            return "off-center and on different scales" if off_center else "on different scales"
        return "all on a small scale" if float(spread.max()) < 1 else "all on a large scale"

    def words(self, layer: LayerConditioning) -> str:
        """Mean and spread of the features that stand out."""
        text = f"Their mean makes {layer.mean_share:.0%} of the largest eigenvalue of the second moment; with it taken "
        text += f"off κ would be {layer.centered}."
        out, varies = self.standing_out(), self.deviation > 0
        if out:
            both = torch.stack([self.mean, self.deviation], 1).tolist()
            named = [f"{self.unit} {j} ({number(both[j][0])} ± {number(both[j][1])})" for j in out]
            text += f" Far from mean 0 and a common spread: {listed(named, FEW)}."
        if len(varies) > 1 and varies.any():
            least, most = (number(float(end)) for end in self.deviation[varies].aminmax())
            text += f" Spreads go from {least} to {most}." if least != most else f" All spreads are {most}."
        if constant := int((~varies).sum()):
            text += f" {constant} of {len(varies)} never vary, which does no harm."
        return text


def _gain(layer: LayerConditioning) -> float:
    return layer.kappa.certain / layer.standardized.value


def _standardization(problem: Problem, layer: LayerConditioning) -> tuple[Standardize, str] | None:
    """What `wc.standardize` makes of the data, and its arguments; None where the inputs are not one tensor of numbers,
    or come to the model in another way than as its only argument."""
    if problem.whole_loss is not None:
        return None
    x = problem.batches[0][0]
    dim = None
    if isinstance(x, Tensor) and x.ndim == 3:
        module = dict(problem.model.named_modules()).get(layer.name)
        dim = 1 if isinstance(module, nn.Conv1d) else -1
    try:
        return standardize(problem.batches, dim=dim), "" if dim is None else f", dim={dim}"
    except (TypeError, ValueError):
        return None


def _in_front(given: Problem, standardization: Standardize) -> Network:
    network = Network.copy_of(given.model)
    network.model = nn.Sequential(standardization.to(given.device), network.model)
    return network


def _remedy(front: tuple[Standardize, str] | None, features: Features, subject: Subject) -> str:
    if front is None:
        lines = what_if_code(subject.run, "standardize inputs")
    else:
        lines = [
            f"standardization = wc.standardize(data{front[1]})   # of its {len(front[0].mean)} {features.unit}s",
            "model = nn.Sequential(standardization, model)",
        ]
    # What has learned from the raw inputs is no start, and the best rate may be another one now.
    return "\n".join(lines + anew_code(subject.optimizer))
