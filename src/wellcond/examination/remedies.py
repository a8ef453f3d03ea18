"""What findings advise: as code in the user's own terms, and the same done to a copy of the run.

The code runs as it is where `torch`, `nn` (torch.nn) and `wc` (wellcond) are imported and `model`, `loss_fn` or `loss`,
`data` and `optimizer` are what `wellcond.examine` was given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from wellcond.display import begun
from wellcond.preconditioners import unwrapped_optimizer
from wellcond.problem import TrainingRun

Settings = Mapping[str, Any]


def set_groups(run: TrainingRun, new: Callable[[Settings], Settings]) -> None:
    """Change settings of every parameter group; `new` gives them from those that there are."""
    for group in unwrapped_optimizer(run.optimizer).param_groups:
        group.update(new(group))


def scale_rates(run: TrainingRun, factor: float) -> None:
    """Multiply every group's learning rate."""
    set_groups(run, lambda group: {"lr": group["lr"] * factor})


def set_code(optimizer: Optimizer, factor: float = 1.0, **values: Any) -> str:
    """The loop that sets the same values in every group and multiplies the learning rates, with those of now."""
    lines = ["for group in optimizer.param_groups:"]
    for key, value in values.items():
        lines.append(f'    group["{key}"] = {shown(value)}  # now {_now(optimizer, key)}')
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if factor != 1 and len(rates) == 1:
        lines.append(f'    group["lr"] = {rates.pop() * factor:.2g}  # now {_now(optimizer, "lr")}')
    elif factor != 1:
        lines.append(f'    group["lr"] *= {factor:.2g}  # now {_now(optimizer, "lr")}')
    return "\n".join(lines)


def built_code(
    optimizer: Optimizer,
    kind: type[Optimizer] | None = None,
    new: Callable[[Settings], Settings] = lambda _: {},
    one_group: bool = False,
) -> str:
    """The line that builds this optimizer, or one of another kind with the settings that both have, with changes.

    Args:
        optimizer: whose groups and settings.
        kind: of the optimizer to build.
        new: changed settings of a group.
        one_group: of all parameters, with the first one's settings.
    """
    kind = kind or type(optimizer)
    known = inspect.signature(kind).parameters
    defaults = {key: known[key].default for key in known if key != "params"}
    groups = [{k: v for k, v in {**group, **new(group)}.items() if k in defaults} for group in optimizer.param_groups]
    groups = groups[:1] if one_group else groups
    shared = {k: v for k, v in groups[0].items() if all(_same(group.get(k), v) for group in groups)}
    told = "".join(f", {k}={shown(v)}" for k, v in shared.items() if _told(k, v, defaults[k]))
    module = "torch.optim." if kind.__module__.startswith("torch.optim") else ""
    if len(groups) == 1:
        return f"optimizer = {module}{kind.__name__}(model.parameters(){told})"
    lines = [
        f'    {{"params": optimizer.param_groups[{i}]["params"]'
        + "".join(f', "{k}": {shown(v)}' for k, v in group.items() if k not in shared)
        + "},"
        for i, group in enumerate(groups)
    ]
    return f"optimizer = {module}{kind.__name__}([\n" + "\n".join(lines) + f"\n]{told})"


def examined_code(run: TrainingRun) -> str:
    """The arguments that say what a run trains, as `wellcond.Problem` and `wellcond.examine` take them."""
    return "model, loss_fn, data" if run.loss is None else "model, data=data, loss=loss"


def loss_code(run: TrainingRun) -> str:
    """The loss of one `batch`."""
    return "loss_fn(model(batch[0]), batch[1])" if run.loss is None else "loss(model, batch)"


def what_if_code(run: TrainingRun, change: str) -> list[str]:
    """The lines that make a change that `wellcond.what_if` knows."""
    held = "optimizer" if run.optimizer is not None else "torch.optim.SGD(model.parameters(), lr=0.1)"
    return [
        f"problem = wc.Problem({examined_code(run)})",
        f'changed = wc.what_if(problem, {held}, "{change}", warm_up=0, steps=1, figures=False)',
        f'model = changed["{change}"].model',
    ]


def anew_code(optimizer: Optimizer | None, factor: float = 1.0) -> list[str]:
    """The lines that draw new weights, and an optimizer of them at the given rate times a factor."""
    lines = [
        "for module in model.modules():   # new weights",
        '    if hasattr(module, "reset_parameters"):',
        "        module.reset_parameters()",
    ]
    if optimizer is None:
        return lines
    groups = len(optimizer.param_groups)
    told = f"   # the first of {groups} groups' settings, for all" if groups > 1 else ""
    rate = float(f"{float(optimizer.param_groups[0]['lr']) * factor:.2g}")
    return [*lines, built_code(optimizer, new=lambda _: {"lr": rate}, one_group=True) + told]


def shown(value: Any) -> str:
    """A setting as one writes it."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, tuple | list):
        return f"({', '.join(map(shown, value))})"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _now(optimizer: Optimizer, key: str) -> str:
    return begun(list(dict.fromkeys(shown(group[key]) for group in optimizer.param_groups)), 4)


def _told(key: str, value: Any, default: Any) -> bool:
    """Whether a setting is worth writing: where it is not the default, and where the default is not known by heart."""
    return key == "lr" or (key == "weight_decay" and value != 0) or not _same(value, default)


def _same(a: Any, b: Any) -> bool:
    return shown(a) == shown(b)
