"""Are there units that do nothing, or the same as another?"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wellcond.display import begun, capitalized
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.linalg import Estimate
from wellcond.normalization import Units, units_of
from wellcond.problem import TrainingRun
from wellcond.trials import renew

SOME = 0.1
"""Of a layer's units; a wide ReLU layer in good health loses a few in a hundred."""

MOST = 0.5
"""With half of its units spare the layer is the one of a network half as wide."""

FEWEST = 2
"""One unit more or less is no finding, whatever its share."""

LISTED = 8
"""Units that are named."""

_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The layer with the largest share of units that never vary or are multiples of another."""
    layers = [without_pruned(subject.problem.model, u) for u in units_of(subject.problem) if _is_trained(subject, u)]
    if not layers:
        return None
    worst = max(layers, key=_share)
    others = [u for u in layers if u is not worst and _share(u) >= SOME and len(u.spare) >= FEWEST]
    count, dead, spare = worst.count, len(worst.dead), len(worst.spare)
    figures = {"dead units": dead, "duplicate units": spare - dead, "units of the layer": count}
    evidence = {name: Estimate.exactly(n, "exact: one pass over the data") for name, n in figures.items()}
    if spare < FEWEST or _share(worst) < SOME:
        title = "Hardly any unit is dead or a duplicate." if spare else "No unit is dead or a duplicate."
        text = "None gives the same on all data, or a multiple of another's."
        if spare:
            text = f"At most {spare} of {count} units of a layer give the same on all data, or a multiple of another's."
        return Finding("dead_units", Severity.GOOD, title, text, evidence)
    kinds = {"dead": dead, "duplicates": spare - dead}
    title = " and ".join(f"{n} of {count} units of layer “{worst.layer}” are {kind}" for kind, n in kinds.items() if n)
    most = _share(worst) >= MOST
    severity, effect, remedy = Severity.SEVERE if most else Severity.NOTICE, None, _remedy(subject, worst)
    words = [*_words(worst), *(f"Layer “{u.layer}” has {len(u.spare)} of {u.count} more." for u in others)]
    if _redrawable(subject, worst):
        effect = subject.trials.effect(lambda run: redraw(run, worst))
    else:
        words.append(
            f"What “{worst.seen_by}” makes of them can't be kept as it is, so drawing new weights for them was not "
            "tried."
        )
    if effect and not effect.saves():
        severity = max(severity.after(effect), Severity.NOTICE if most else Severity.GOOD)
        words.append(
            f"Drawing new weights for them {'did harm' if effect.better is False else 'hardly helped'} in the trial: "
            "here and now the network does without them, and a narrower layer would do the same."
        )
        remedy = "" if effect.better is False else remedy
    return Finding("dead_units", severity, f"{capitalized(title)}.", " ".join(words), evidence, remedy, effect)


def _is_trained(subject: Subject, units: Units) -> bool:
    """Whether steps move what makes the units: in a frozen layer nothing changes them."""
    measured = {id(p) for p in subject.problem.parameters}
    return any(id(p) in measured for p in subject.problem.model.get_submodule(units.layer).parameters())


def _share(units: Units) -> float:
    return len(units.spare) / units.count


def _words(units: Units) -> list[str]:
    words = []
    if units.dead:
        words.append(
            f"Dead ones ({begun(units.dead, LISTED)}) give the same on all data: a ReLU that is always zero, or a "
            "saturated tanh. They get no gradient, or next to none, and are a second bias to the next layer."
        )
    if units.duplicates:
        groups = "; ".join(begun(group, LISTED) for group in units.duplicates[:3])
        words.append(
            f"Duplicates ({groups}) are multiples of one another: units that start alike get the same gradient and "
            "stay alike, whatever the steps."
        )
    return words


def without_pruned(model: nn.Module, units: Units) -> Units:
    """Without the units that were taken out on purpose: all weights into them and out of them are zero, while others
    live."""
    pair = _pair(model, units)
    if pair is None or len(units.dead) == units.count:
        return units
    into = pair.layer.weight
    assert isinstance(into, Tensor)
    pruned = {j for j in units.dead if not into[j].any() and not pair.outgoing[:, j].any()}
    dead = [j for j in units.dead if j not in pruned]
    return Units(units.layer, units.seen_by, units.count - len(pruned), dead, units.duplicates)


class _Pair(NamedTuple):
    """A layer that makes units, the one that sees them, both plain.

    Attributes:
        layer, after: them.
        outgoing: the weights out of the units, (outputs, units, …), a view of those of `after`.
        view: the code that makes it of `after.weight`.
    """

    layer: nn.Module
    after: nn.Module
    outgoing: Tensor
    view: str


def _pair(model: nn.Module, units: Units) -> _Pair | None:
    """None where one is of another kind, or something between them mixes the units."""
    modules, count = dict(model.named_modules()), units.count
    layer, after = modules[units.layer], modules[units.seen_by]
    if not (_is_plain(layer) and _is_plain(after)):
        return None
    weight = after.weight
    assert isinstance(weight, Tensor)
    if weight.shape[1] == count:
        return _Pair(layer, after, weight, "")
    if weight.ndim != 2 or weight.shape[1] % count:
        return None
    if isinstance(layer, nn.Linear):  # flattened in between
        return _Pair(layer, after, weight.unflatten(1, (-1, count)).mT, f".unflatten(1, (-1, {count})).mT")
    return _Pair(layer, after, weight.unflatten(1, (count, -1)), f".unflatten(1, ({count}, -1))")


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, _Layer) and "weight" in module._parameters and getattr(module, "groups", 1) == 1


def _redrawable(subject: Subject, units: Units) -> _Pair | None:
    """The pair, where steps move the weights of both."""
    pair, measured = _pair(subject.problem.model, units), {id(p) for p in subject.problem.parameters}
    return pair if pair and {id(pair.layer.weight), id(pair.after.weight)} <= measured else None


def redraw(run: TrainingRun, units: Units) -> None:
    """Draw new weights into dead units, and into all but the first of duplicates. The first takes over what the
    others give; the new ones count for nothing at first."""
    pair = _pair(run.model, units)
    assert pair is not None
    fresh = copy.deepcopy(pair.layer)
    renew(fresh, {id(p) for p in fresh.parameters()})
    with torch.no_grad():
        for name, p in pair.layer.named_parameters(recurse=False):
            p[units.spare] = fresh.get_parameter(name)[units.spare]
        for first, *others in units.duplicates:
            pair.outgoing[:, first] += pair.outgoing[:, others].sum(1)
        pair.outgoing[:, units.spare] = 0.0


def _remedy(subject: Subject, units: Units) -> str:
    """`redraw` in the user's words."""
    layer = dict(subject.problem.model.named_modules())[units.layer]
    if not _is_plain(layer):
        return (
            f"# new weights for all of layer {units.layer!r} ({type(layer).__name__}); then train with a smaller rate\n"
            f"model.get_submodule({units.layer!r}).reset_parameters()"
        )
    lines = [
        f"units = {units.spare}",
        "import copy",
        f"layer, after = model.get_submodule({units.layer!r}), model.get_submodule({units.seen_by!r})",
        "fresh = copy.deepcopy(layer)",
        "fresh.reset_parameters()",
        "with torch.no_grad():",
        *(f"    layer.{name}[units] = fresh.{name}[units]" for name, _ in layer.named_parameters(recurse=False)),
    ]
    pair = _redrawable(subject, units)
    if pair is None:
        return "\n".join([*lines, "# the layers behind it see something new: train with a smaller rate at first"])
    lines.append(f"    out = after.weight{pair.view}")
    if units.duplicates:
        lines.append(f"    for first, *others in {units.duplicates}:")
        lines.append("        out[:, first] += out[:, others].sum(1)")
    return "\n".join([*lines, "    out[:, units] = 0.0   # the new ones count for nothing at first"])
