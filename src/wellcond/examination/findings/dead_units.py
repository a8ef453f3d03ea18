"""Are there units that do nothing, or the same as another?"""

from __future__ import annotations

import copy

import torch
from torch import nn

from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.examination.subject import Subject
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
    worst = max(layers, key=lambda units: len(units.spare) / units.count)
    others = [u for u in layers if u is not worst and _share(u) >= SOME and len(u.spare) >= FEWEST]
    count, dead, spare = worst.count, len(worst.dead), len(worst.spare)
    evidence = {
        "dead units": _count(dead),
        "duplicate units": _count(spare - dead),
        "units of the layer": _count(count),
    }
    if spare < FEWEST or _share(worst) < SOME:
        return Finding(
            "dead_units",
            Severity.GOOD,
            "Hardly any unit is dead or a duplicate." if spare else "No unit is dead or a duplicate.",
            f"At most {spare} of {count} units of a layer give the same on all data, or a multiple of another's."
            if spare
            else "None gives the same on all data, or a multiple of another's.",
            evidence,
        )
    what = " and ".join(
        [f"{dead} of {count} units of layer “{worst.layer}” are dead"] * bool(dead)
        + [f"{spare - dead} of {count} units of layer “{worst.layer}” are duplicates"] * (spare > dead)
    )
    severity, effect, remedy = (
        Severity.SEVERE if _share(worst) >= MOST else Severity.NOTICE,
        None,
        _remedy(subject, worst),
    )
    words = [*_words(worst), *(f"Layer “{u.layer}” has {len(u.spare)} of {u.count} more." for u in others)]
    if _can_be_redrawn(subject, worst):
        effect = subject.trials.effect(lambda run: redraw(run, worst))
    else:
        words.append(
            f"What “{worst.seen_by}” makes of them can't be kept as it is, so drawing them anew was not tried."
        )
    if effect and not effect.saves():
        severity = max(severity.after(effect), Severity.NOTICE if _share(worst) >= MOST else Severity.GOOD)
        words.append(
            f"Drawing them anew {'did harm' if effect.better is False else 'hardly helped'} in the trial: here and now "
            "the network does without them, and a narrower layer would do the same."
        )
        remedy = "" if effect.better is False else remedy
    return Finding(
        "dead_units",
        severity,
        f"{what[0].upper()}{what[1:]}.",
        " ".join(words),
        evidence,
        remedy,
        effect,
    )


def _is_trained(subject: Subject, units: Units) -> bool:
    """Whether steps move what makes the units: in a frozen layer nothing mends them."""
    measured = {id(p) for p in subject.problem.parameters}
    return any(id(p) in measured for p in subject.problem.model.get_submodule(units.layer).parameters())


def _share(units: Units) -> float:
    return len(units.spare) / units.count


def _words(units: Units) -> list[str]:
    words = []
    if units.dead:
        words.append(
            f"Dead ones ({_some(units.dead)}) give the same on all data: a ReLU that is always zero, or a saturated "
            "tanh. They get no gradient, or next to none, and are a second bias to the next layer."
        )
    if units.duplicates:
        groups = "; ".join(_some(group) for group in units.duplicates[:3])
        words.append(
            f"Duplicates ({groups}) are multiples of one another: units that start alike get the same gradient and "
            "stay alike, whatever the steps."
        )
    return words


def _some(units: list[int]) -> str:
    return ", ".join(map(str, units[:LISTED])) + (" …" if len(units) > LISTED else "")


def without_pruned(model: nn.Module, units: Units) -> Units:
    """Without the units that were taken out on purpose: all weights into them and out of them are zero, while others
    live."""
    layer, after = (dict(model.named_modules())[name] for name in (units.layer, units.seen_by))
    if not (_is_plain(layer) and _is_plain(after)) or len(units.dead) == units.count:
        return units
    into, out_of = layer.weight, _outgoing(after, layer, units.count)
    assert isinstance(into, torch.Tensor)
    if out_of is None:
        return units
    pruned = {j for j in units.dead if not into[j].any() and not out_of[0][:, j].any()}
    dead = [j for j in units.dead if j not in pruned]
    return Units(units.layer, units.seen_by, units.count - len(pruned), dead, units.duplicates)


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, _Layer) and "weight" in module._parameters and getattr(module, "groups", 1) == 1


def _outgoing(after: nn.Module, layer: nn.Module, count: int) -> tuple[torch.Tensor, str] | None:
    """A view of the weights of the next layer, (outputs, units, …), and what makes it of them."""
    weight = after.weight
    assert isinstance(weight, torch.Tensor)
    if weight.shape[1] == count:
        return weight, ""
    if weight.ndim != 2 or weight.shape[1] % count:
        return None
    if isinstance(layer, nn.Linear):  # flattened in between
        return weight.unflatten(1, (-1, count)).mT, f".unflatten(1, (-1, {count})).mT"
    return weight.unflatten(1, (count, -1)), f".unflatten(1, ({count}, -1))"


def _can_be_redrawn(subject: Subject, units: Units) -> bool:
    layer, after = (dict(subject.problem.model.named_modules())[name] for name in (units.layer, units.seen_by))
    measured = {id(p) for p in subject.problem.parameters}
    if not (_is_plain(layer) and _is_plain(after)) or _outgoing(after, layer, units.count) is None:
        return False
    return id(layer.weight) in measured and id(after.weight) in measured


def redraw(run: TrainingRun, units: Units) -> None:
    """Draw the weights into dead units, and into all but the first of duplicates, anew. The first takes over what the
    others give; the new ones count for nothing at first."""
    layer, after = run.model.get_submodule(units.layer), run.model.get_submodule(units.seen_by)
    fresh = copy.deepcopy(layer)
    renew(fresh, {id(p) for p in fresh.parameters()})
    outgoing = _outgoing(after, layer, units.count)
    assert outgoing is not None
    with torch.no_grad():
        for name, p in layer.named_parameters(recurse=False):
            p[units.spare] = fresh.get_parameter(name)[units.spare]
        for first, *others in units.duplicates:
            outgoing[0][:, first] += outgoing[0][:, others].sum(1)
        outgoing[0][:, units.spare] = 0.0


def _remedy(subject: Subject, units: Units) -> str:
    """`redraw` in the user's words."""
    modules = dict(subject.problem.model.named_modules())
    layer, after = modules[units.layer], modules[units.seen_by]
    if not _is_plain(layer):
        return (
            f"# all weights of layer {units.layer!r} ({type(layer).__name__}) anew; then train with a smaller rate\n"
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
    if not _can_be_redrawn(subject, units):
        return "\n".join([*lines, "# the layers behind it see something new: train with a smaller rate at first"])
    outgoing = _outgoing(after, layer, units.count)
    assert outgoing is not None
    lines.append(f"    out = after.weight{outgoing[1]}")
    if units.duplicates:
        lines.append(f"    for first, *others in {units.duplicates}:")
        lines.append("        out[:, first] += out[:, others].sum(1)")
    return "\n".join([*lines, "    out[:, units] = 0.0   # the new ones count for nothing at first"])


def _count(units: int) -> Estimate:
    return Estimate(float(units), float(units), float(units), "exact: one pass over the data")
