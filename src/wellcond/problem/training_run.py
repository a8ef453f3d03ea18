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

    @classmethod
    def of(cls, given: Any, loss_fn: Any, data: Any, optimizer: Any, loss: Any) -> TrainingRun:
        """The run itself, or one of a model and what follows it.

        Raises:
            TypeError: for a run with something else beside it.
        """
        if not isinstance(given, TrainingRun):
            return cls(given, loss_fn, data, optimizer, loss)
        if any(x is not None for x in (loss_fn, data, optimizer, loss)):
            raise TypeError("a TrainingRun has its loss, data and optimizer; give the run alone")
        return given
