"""What the command examines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass
class TrainingRun:
    """A training run at one moment: what `wellcond examine` wants a user's function to return.

    Attributes:
        model: the network, trained so far as you like.
        loss_fn: (output, target) → scalar mean over examples; None with `loss`.
        data: one (input, target) batch, a list of batches, or a DataLoader.
        optimizer: over the model's parameters, after at least one step; None to examine without one.
        loss: (model, batch) → scalar, instead of `loss_fn`, for other kinds of batch.
    """

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor] | None
    data: Any
    optimizer: Optimizer | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None
