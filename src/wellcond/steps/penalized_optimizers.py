"""Five of torch's optimizers, with the same arguments and a penalty inside the step."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import torch
from torch import nn

from wellcond.penalties import Penalty
from wellcond.preconditioners import reading_for, reads
from wellcond.steps.one_pass_optimizer import OnePassOptimizer
from wellcond.steps.selection import Params

_Class = TypeVar("_Class", bound=type[OnePassOptimizer])


def _with_penalty(cls: _Class) -> _Class:
    """Give one of our classes its constructor and its reading, from its counterpart in torch."""
    made: Any = cls
    _, torchs = made.__bases__

    def __init__(  # noqa: D417, N807
        self: OnePassOptimizer,
        *args: Any,
        penalty: Penalty | None = None,
        space: str = "intrinsic",
        penalized: Params = None,
        model: nn.Module | None = None,
        compile: bool | None = None,
        state_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        """Build it; the arguments before `penalty` are torch's, and so are the entries of its `state_dict`.

        Args:
            penalty: one of `wellcond.penalties`; without one, and without `state_dtype`, every step is torch's own.
                One of groups or whole matrices takes a second pass over memory, as does a step that a GradScaler
                scales. It is in copies and pickles, not in a `state_dict`: give it again and load that.
            space: "intrinsic", "original" or "euclidean", as in `regularize`.
            penalized: the parameters that it is on, as `params` of `regularize`: by default those of two or more
                dimensions, with `model` no biases, normalization layers, embeddings or parametrized weights.
            model: gives the parameters names.
            compile: compile the step (once a dtype, some 10 s); by default where it is on a million entries or
                more.
            state_dtype: torch.float32 keeps the state of float16 and bfloat16 parameters in float32.

        Raises:
            ValueError: for a penalty or a `state_dtype` on what only torch's own step can do: complex parameters,
                sparse gradients, capturable or differentiable steps; and for what `regularize` refuses.
            TypeError: for what `regularize` refuses.

        Source: theory, sections 3.1, 4.5 and 4.7.
        """
        super(made, self).__init__(*args, **kwargs)
        self._set_up(penalty, space, penalized, model, compile, state_dtype)

    theirs = inspect.signature(torchs.__init__)
    ours = [p for p in inspect.signature(__init__).parameters.values() if p.kind == p.KEYWORD_ONLY]
    signature: Any = theirs.replace(parameters=[*theirs.parameters.values(), *ours])
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    made.__init__ = __init__
    made._torch = torchs
    reads(made)(type(reading_for(torchs)))
    return cls


@_with_penalty
class SGD(OnePassOptimizer, torch.optim.SGD):
    """torch.optim.SGD with a penalty inside the step."""


@_with_penalty
class Adagrad(OnePassOptimizer, torch.optim.Adagrad):
    """torch.optim.Adagrad with a penalty inside the step."""


@_with_penalty
class RMSprop(OnePassOptimizer, torch.optim.RMSprop):
    """torch.optim.RMSprop with a penalty inside the step."""


@_with_penalty
class Adam(OnePassOptimizer, torch.optim.Adam):
    """torch.optim.Adam with a penalty inside the step."""


@_with_penalty
class AdamW(OnePassOptimizer, torch.optim.AdamW):
    """torch.optim.AdamW with a penalty inside the step.

    >>> from wellcond.penalties import L1
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.0, penalty=L1(0.3))
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     (model(torch.eye(3)) - torch.tensor([[2.0], [0.0], [0.0]])).square().mean().backward()
    ...     optimizer.step()
    >>> (model.weight == 0).tolist()
    [[False, True, True]]
    """
