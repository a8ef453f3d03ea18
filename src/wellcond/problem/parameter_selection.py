"""Which of a model's parameters are measured, and whether they can be."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from wellcond.display import begun

_MEASURED = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
"""What a network of each dtype is measured in: a half precision is too coarse for second derivatives."""


def optimized_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[nn.Parameter], list[str]]:
    """The model's trainable parameters that the optimizer has, and the names of those that it has not.

    Raises:
        ValueError: if the optimizer has parameters that are not the model's, or none that are.
    """
    model = unwrapped(model)
    in_optimizer = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    in_model = {id(p) for p in model.parameters()}
    foreign = [p for i, p in in_optimizer.items() if i not in in_model]
    if foreign:
        raise ValueError(
            f"the optimizer is over {len(foreign)} parameters that are not the model's (one has shape "
            f"{tuple(foreign[0].shape)}); build it from this model's parameters()"
        )
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    trained = [p for _, p in trainable if id(p) in in_optimizer]
    if trainable and not trained:
        raise ValueError("the optimizer has none of the model's trainable parameters; build it from this model's")
    return trained, [name for name, p in trainable if id(p) not in in_optimizer]


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def trainable(model: nn.Module, chosen: Iterable[nn.Parameter | str] | None) -> tuple[list[str], list[nn.Parameter]]:
    """Names and parameters to measure: all trainable ones, or the chosen of them, in the model's order."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, p in named.items():
        if isinstance(p, UninitializedParameter):
            raise ValueError(f"{name} is not initialized; run the lazy model once on a batch first")
    if not any(p.numel() for p in named.values()):
        raise ValueError("the model has no trainable parameters; set requires_grad on those to measure")
    wanted = [chosen] if isinstance(chosen, str | torch.Tensor) else list(chosen or [])
    if wanted:
        for w in wanted:
            if isinstance(w, str) and w not in named:
                raise ValueError(f"the model has no trainable parameter {w!r}; it has {begun(list(named), 8)}")
            if not isinstance(w, str) and not any(w is p for p in named.values()):
                raise ValueError(f"a parameter of shape {tuple(w.shape)} is not a trainable one of this model")
        names, ids = {w for w in wanted if isinstance(w, str)}, {id(w) for w in wanted}
        named = {name: p for name, p in named.items() if name in names or id(p) in ids}
    for name, p in named.items():
        if p.is_complex():
            raise ValueError(f"{name} is complex; write it as a real tensor (torch.view_as_real)")
        if p.layout != torch.strided:
            raise ValueError(f"{name} is sparse ({p.layout}); make it dense")
    return list(named), list(named.values())


def positions_of(
    which: Iterable[str | nn.Module | nn.Parameter],
    model: nn.Module,
    parameters: list[nn.Parameter],
) -> list[int]:
    """Places, rising, of the parameters that names, patterns of names, modules or parameters point to.

    Args:
        which: what points to them.
        model: whose names, of a tied parameter every one.
        parameters: those that have a place.
    """
    ids = {id(p): i for i, p in enumerate(parameters)}
    named = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if id(p) in ids]
    names = [name for name, _ in named]
    found: set[int] = set()
    for item in which:
        if isinstance(item, str):
            matches = [p for name, p in named if name == item or fnmatch.fnmatchcase(name, item)]
        elif isinstance(item, nn.Module):
            matches = [p for p in item.parameters() if id(p) in ids]
        elif isinstance(item, nn.Parameter):
            matches = [item] if id(item) in ids else []
        else:
            raise TypeError(f"got a {type(item).__name__}; give names, patterns of names, modules or parameters")
        if not matches:
            what = repr(item) if isinstance(item, str) else f"this {type(item).__name__}"
            raise ValueError(f"{what} has none of the parameters that are measured; they are {begun(names, 8)}")
        found.update(ids[id(p)] for p in matches)
    if not found:
        raise ValueError(f"no parameter is named; there are {begun(names, 8)}")
    return sorted(found)


def one_device(names: list[str], parameters: list[nn.Parameter]) -> torch.device:
    """The device that all parameters are on."""
    if parameters[0].device.type == "meta":
        raise ValueError(f"{names[0]} is on the meta device and has no values; load the model on a real one")
    for name, p in zip(names, parameters, strict=True):
        if p.device != parameters[0].device:
            raise ValueError(
                f"{names[0]} is on {parameters[0].device} and {name} on {p.device}; move the model to one device"
            )
    return parameters[0].device


def working_dtype(names: list[str], parameters: list[nn.Parameter], asked: torch.dtype | None) -> torch.dtype:
    """The dtype to measure in: the one asked for, or the parameters' own; float32 where that is a half precision."""
    if asked not in (None, torch.float32, torch.float64):
        raise ValueError(f"got dtype={asked}; a curvature is measured in torch.float32 or torch.float64")
    if asked is not None:
        return asked
    for name, p in zip(names, parameters, strict=True):
        if p.dtype not in _MEASURED:
            raise ValueError(f"{name} is {p.dtype}; give dtype=torch.float32")
        if _MEASURED[p.dtype] != _MEASURED[parameters[0].dtype]:
            raise ValueError(f"{names[0]} is {parameters[0].dtype} and {name} {p.dtype}; give dtype=torch.float32")
    return _MEASURED[parameters[0].dtype]
