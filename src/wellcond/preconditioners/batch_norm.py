"""Batch normalization as a preconditioner of the gradient, without a batch-norm layer (theory, section 5.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from wellcond.preconditioners.standardization import Block, Standardization
from wellcond.private_torch import in_backward, uncompiled
from wellcond.problem import unwrapped

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class BatchNormPreconditioner(Standardization):
    """What batch normalization of every layer's inputs would do to the gradient: P = VD/q of running statistics.

    Hooks on the model's `Linear` and `Conv1d/2d/3d` layers follow the mean μ and the variance σ² of what these see, in
    batches of any size down to one. The model computes what it did; inference costs nothing. Use it with
    `wc.precondition`, which lets P move.

    With statistics of a batch, m the fan-in and N rows: μ ← ρμ + (1−ρ)·mean(h), σ² ← ρσ² + (1−ρ)·mean((h−μ_before)²),
    from 0 and 1; σ̃² = σ² + ε₁ max σ² + ε₂; q² = max(m/N, 1). Then PPᵀ makes of a gradient
    ∇W ← (∇W − ∇b μᵀ)/(q²σ̃²) and ∇b ← ∇b/q² − ∇W μ with that new ∇W.

    - A row is an example, a token or a patch; a convolution takes μ and σ of its input channels. N counts the rows of
      all calls since the last step of an optimizer that P is attached to (`stepped`): those of the batch, where
      gradients are accumulated of all its parts, where a layer is called several times of all calls.
    - Statistics are made in train mode, with gradients enabled, and not while a `Problem` measures or
      `torch.func.functional_call` puts other parameters in. A checkpointed layer that runs again in the backward pass
      counts once. Features that are not finite in a batch leave their statistics as they are.
    - Without a bias, or with one that is frozen, there is no centering: D/q, with σ² + μ² instead of σ², the mean
      square (theory, section 5.2).
    - A frozen weight leaves its bias 1/q. A weight of several layers has one P, from the inputs of all of them.
      A layer that has not been called, and a parameter of no such layer (norms, embeddings, attention's packed
      projections), is left as it is.
    - It follows `.to`, deepcopy and pickling with the model. Statistics are of this process: under data parallelism
      every process would have another P, so that is refused.

    Args:
        model: the network; wrappers are taken off. What is trainable now is what P covers.
        momentum: ρ, at least 0 and below 1.
        eps_relative: ε₁ ≥ 0.
        eps: ε₂ > 0.

    Raises:
        TypeError, ValueError: for what is no module, has no such layer with a trainable parameter, or is not
            initialized; for numbers out of range.

    Source: theory, section 5.3; Lange, Helfrich and Ye, JMLR 23 (2022).

    >>> import torch, wellcond as wc
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> P = BatchNormPreconditioner(model, momentum=0.5)
    >>> handle = wc.precondition(optimizer, P)
    >>> model(torch.tensor([[2.0, 0.0]])).sum().backward()
    >>> P.state_dict()["layers"][""]["mean"]
    tensor([1., 0.])
    """

    def __init__(self, model: nn.Module, momentum: float = 0.99, eps_relative: float = 1e-2, eps: float = 1e-4):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; give the torch.nn.Module that is trained")
        _refuse_replicas(model)
        _refuse_numbers(momentum, eps_relative, eps)
        model = unwrapped(model)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if lazy := [name for name, p in named.items() if is_lazy(p)]:
            raise ValueError(f"{lazy[0]} is not initialized; run the lazy model once on a batch first")
        place = {id(p): i for i, p in enumerate(named.values())}
        self._statistics: dict[str, _Statistics] = {}
        self._handles: list[RemovableHandle] = []
        blocks: list[Block] = []
        for name, weight, layers in _by_weight(model):
            biases = [place[i] for i in {id(m.bias): None for m in layers} if i in place]
            if id(weight) not in place and not biases:
                continue
            groups = getattr(layers[0], "groups", 1)
            made = _Statistics(weight, groups, momentum, eps_relative, eps)
            self._statistics[name] = made
            self._handles += [m.register_forward_hook(made.see, with_kwargs=True) for m in layers]
            blocks.append(Block(place.get(id(weight)), biases, groups, made))
        biases = [b for block in blocks for b in block.biases]
        if shared := [name for i, name in enumerate(named) if biases.count(i) > 1]:
            raise ValueError(
                f"{shared[0]} is the bias of layers with different weights, which has no preconditioner "
                "here; freeze it, or give every weight a bias of its own"
            )
        if not blocks:
            raise ValueError(
                f"{type(model).__name__} has no Linear, Conv1d, Conv2d or Conv3d with a trainable parameter; there is "
                "nothing to precondition"
            )
        super().__init__(list(named.values()), blocks)

    @property
    def constant(self) -> bool:
        """Whether the statistics stay what they are, after `remove`."""
        return not self._handles

    def stepped(self) -> None:
        """Begin a new batch: N counts from the next call of a layer."""
        for made in self._statistics.values():
            made.counting = False

    def remove(self) -> None:
        """Take the hooks off the model; P stays what it is, a constant."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """μ, σ² and N of every layer, to be saved with the model."""
        layers = {
            name: {"mean": made.mean.clone(), "variance": made.variance.clone(), "rows": made.rows}
            for name, made in self._statistics.items()
        }
        return {"layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave for a model of the same layers.

        Raises:
            ValueError: if it has other layers, other widths, or what can't be a mean and a variance.
        """
        layers = state.get("layers") if isinstance(state, Mapping) else None
        if not isinstance(layers, Mapping) or set(layers) != set(self._statistics):
            got = ", ".join(map(repr, layers if isinstance(layers, Mapping) else ())) or "no layers"
            raise ValueError(f"the state has {got}; this preconditioner has {', '.join(map(repr, self._statistics))}")
        for name, made in self._statistics.items():
            if set(layers[name]) != {"mean", "variance", "rows"}:
                raise ValueError(
                    f"the state of layer {name!r} has {', '.join(layers[name]) or 'nothing'}, and not mean, variance "
                    "and rows; give what state_dict() returned"
                )
            for key, mine in (("mean", made.mean), ("variance", made.variance)):
                given = layers[name][key]
                if given.shape != mine.shape:
                    raise ValueError(
                        f"the {key} of layer {name!r} has shape {tuple(given.shape)} in the state; it is "
                        f"{tuple(mine.shape)} here"
                    )
                if not bool(given.isfinite().all()) or (key == "variance" and bool((given < 0).any())):
                    raise ValueError(
                        f"the {key} of layer {name!r} in the state is not finite, or negative; load an older one"
                    )
        for name, made in self._statistics.items():
            made.load(**layers[name])

    def __repr__(self) -> str:
        return f"BatchNormPreconditioner({len(self._statistics)} layers, {len(self.parameters)} parameters)"


class _Statistics:
    """Running mean and variance of what the layers of one weight see: `Moments` of a block."""

    def __init__(self, weight: Tensor, groups: int, momentum: float, eps_relative: float, eps: float):
        self.weight, self.momentum, self.eps_relative, self.eps = weight, momentum, eps_relative, eps
        self.fan_in = weight.shape[1:].numel()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.mean = torch.zeros(weight.shape[1] * groups, dtype=dtype, device=weight.device)
        self.variance = torch.ones_like(self.mean)
        self.rows = 0
        self.version = 0
        self.counting = False  # whether `rows` are those of a batch that goes on
        self._forward = False  # whether calls outside of backward passes were counted

    def known(self, centered: bool) -> tuple[Tensor, Tensor, float] | None:
        if not self.version:
            return None
        variance = self.variance if centered else self.variance + self.mean.square()
        variance = variance + (self.eps_relative * variance.max() + self.eps)
        return self.mean, variance, max(self.fan_in / self.rows, 1.0) if self.rows else 1.0

    def load(self, mean: Tensor, variance: Tensor, rows: int) -> None:
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.rows, self.counting = rows, False
        self.version += 1

    def _add(self, x: Tensor, rows: int) -> None:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        if self.mean.device != self.weight.device or self.mean.dtype != dtype:  # the model has moved
            self.mean, self.variance = (v.to(self.weight.device, dtype) for v in (self.mean, self.variance))
        x = x.detach().to(self.mean)
        spatial = self.weight.dim() - 2
        if not spatial and x.dim() != 2:
            x = x.reshape(-1, x.shape[-1])
        self._follow(x, spatial)
        self.rows = self.rows * self.counting + rows
        self.counting = True
        self.version += 1

    @torch.no_grad()
    def _follow(self, x: Tensor, spatial: int) -> None:
        """Move the mean and the variance towards those of a batch."""
        others = [d for d in range(x.dim()) if d != x.dim() - 1 - spatial]
        away = x - self.mean.view(-1, *[1] * spatial)  # torch.var_mean takes ten times as long, and needs μ² added
        shift = away.mean(others)
        excess = away.square_().mean(others).sub_(self.variance)
        self.mean.add_(shift.nan_to_num_(0.0, 0.0, 0.0), alpha=1 - self.momentum)
        self.variance.add_(excess.nan_to_num_(0.0, 0.0, 0.0), alpha=1 - self.momentum)

    @uncompiled
    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Forward hook; the output says how many rows there were: examples, tokens or patches."""
        x = args[0] if args else kwargs.get("input")
        stands_in = module._parameters.get("weight") is not self.weight  # something measures
        if not module.training or not torch.is_grad_enabled() or stands_in or not isinstance(x, Tensor):
            return
        again = in_backward()  # a checkpointed layer, in the backward pass
        if x.numel() == 0 or (again and self._forward):
            return
        self._forward = not again
        self._add(x, output.numel() // len(self.weight))


def _by_weight(model: nn.Module) -> list[tuple[str, Tensor, list[nn.Module]]]:
    """(name of the first, weight, layers) of every weight that is a parameter of layers."""
    found: dict[int, tuple[str, Tensor, list[nn.Module]]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight") if isinstance(module, _LAYERS) else None
        if weight is not None:
            found.setdefault(id(weight), (name, weight, []))[2].append(module)
    return list(found.values())


def _refuse_numbers(momentum: float, eps_relative: float, eps: float) -> None:
    for name, value in (("momentum", momentum), ("eps_relative", eps_relative), ("eps", eps)):
        if not isinstance(value, Real):
            raise TypeError(f"{name} is a {type(value).__name__}; give a number")
    if not 0 <= momentum < 1:
        raise ValueError(f"got momentum={momentum!r}; it is at least 0 and below 1")
    if not 0 <= eps_relative < math.inf:
        raise ValueError(f"got eps_relative={eps_relative!r}; it is at least 0 and finite")
    if not 0 < eps < math.inf:
        raise ValueError(f"got eps={eps!r}; it is above 0 and finite")


def _refuse_replicas(model: nn.Module) -> None:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    wrapped = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    if wrapped or (distributed and torch.distributed.get_world_size() > 1):
        raise ValueError(
            "every process or replica would follow the statistics of its own share of a batch, and their parameters "
            "would part; BatchNormPreconditioner is for one process and one replica"
        )
