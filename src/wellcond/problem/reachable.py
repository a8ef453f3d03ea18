"""What the user's own code holds: random generators beside the global ones, networks beside the one trained."""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Iterable
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from wellcond.problem.isolation import RANDOM

MOST = 20_000
"""Objects to look through; a container with more than `LONG` items is data and not looked into."""

LONG = 1000
_OPAQUE = (torch.Tensor, np.ndarray, str, bytes, int, float, complex, type, ModuleType, type(None))
_THEIRS = ("torch.", "numpy.", "builtins", "collections", "abc", "typing")


def generators_of(*roots: Any) -> list[Any]:
    """The generators that can be found from the roots.

    In attributes and containers, in what functions close over, and in what the methods of the user's classes refer to
    as a global of their module.
    """
    return _found(roots, lambda x: isinstance(x, RANDOM) and not isinstance(x, random.SystemRandom))


def modules_of(*roots: Any) -> list[nn.Module]:
    """The modules that can be found from the roots in the same way, without what these hold."""
    return _found(roots, lambda x: isinstance(x, nn.Module))


def _found(roots: Iterable[Any], wanted: Callable[[Any], bool]) -> list[Any]:
    waiting, seen, found = deque(roots), dict[int, Any](), []  # objects themselves, so that no id is used twice
    while waiting and len(seen) < MOST:
        x = waiting.popleft()
        if id(x) in seen or isinstance(x, _OPAQUE):
            continue
        seen[id(x)] = x
        if wanted(x):
            found.append(x)
        else:
            waiting.extend(_inside(x))
    return found


def _inside(x: Any) -> list[Any]:
    if isinstance(x, FunctionType):
        return [*_cells(x), *_globals(x), *(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
    if isinstance(x, MethodType):
        return [x.__self__, x.__func__]
    if isinstance(x, functools.partial):
        return [x.func, *x.args, *x.keywords.values()]
    items: list[Any] = []
    if isinstance(x, dict) and len(x) <= LONG:
        items = list(x.values())
    elif isinstance(x, list | tuple | set | frozenset | deque) and len(x) <= LONG:
        items = list(x)
    items += list(getattr(x, "__dict__", {}).values())
    for kind in type(x).__mro__:
        if not f"{kind.__module__}.".startswith(_THEIRS):
            held = (getattr(f, "__func__", f) for f in vars(kind).values())
            items += [f for f in held if isinstance(f, (FunctionType, *RANDOM))]
    return items


def _cells(function: FunctionType) -> list[Any]:
    not_filled_yet = CellType()
    return [cell.cell_contents for cell in function.__closure__ or () if cell != not_filled_yet]


def _globals(function: FunctionType) -> list[Any]:
    if f"{function.__module__}.".startswith(_THEIRS):
        return []
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
    return [function.__globals__[name] for name in sorted(names) if name in function.__globals__]
