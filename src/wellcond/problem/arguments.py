"""What a problem can't be made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def check_arguments(model: Any, loss_fn: Any, loss: Any, *, mode: str, seed: int, memory_limit: float) -> None:
    """Refuse arguments of `Problem` of the wrong kind; data and parameters are checked where they are read.

    Raises:
        TypeError, ValueError: saying what was given and what is expected.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise TypeError("TorchScript modules can't be measured without changing them; give the original module")
    if isinstance(loss_fn, type):
        raise TypeError(f"loss_fn is the class {loss_fn.__name__}; give an instance, {loss_fn.__name__}()")
    if not isinstance(memory_limit, int | float) or not memory_limit >= 0:
        raise ValueError(f"got memory_limit={memory_limit!r}; it is a number of bytes, 0 or more")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"got seed={seed}; it is a whole number, at least 0 and below 2**32")
    if (loss_fn is None) == (loss is None):
        raise ValueError("give either loss_fn(output, target) or loss=callable(model, batch)")
    if not callable(loss_fn or loss):
        raise TypeError(f"the loss is a {type(loss_fn or loss).__name__}; give a callable")
    if mode not in ("train", "eval"):
        raise ValueError(f'got mode={mode!r}; it is "train" or "eval"')
