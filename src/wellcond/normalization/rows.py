"""The rows of H: what a layer multiplies with its weight, a row an example, a token or a patch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""Of `nn.MultiheadAttention`, those of query, key and value."""

ROW_EPS = 1e-5
"""ε of `nn.LayerNorm`."""

PIECE = 2**22
"""Numbers in the rows that are made at once: 32 MB. A convolution's patches take kernel-size times its input."""


def rows_of(module: nn.Module, x: Tensor, *, normalized: bool = False) -> Iterator[Tensor]:
    """The rows that an input gives, some at a time: (groups, n, width), float64; with one group if not a convolution.

    A row holds its entries in the order of `weight[i].flatten()`.

    Args:
        module: a convolution, or one that multiplies the last dimension of its input.
        x: its input.
        normalized: layer-normalize the input first, ε = 1e-5, without a weight and bias: each row of a linear layer; of
            a convolution each example, over channels and positions together (`nn.GroupNorm(1, channels)`), before it
            is padded and cut into patches.
    """
    if not isinstance(module, CONVOLUTIONS):
        for block in x.reshape(-1, x.shape[-1]).split(max(1, PIECE // x.shape[-1])):
            yield (_normalized(block.double()) if normalized else block.double())[None]
    else:
        dimensions = len(module.kernel_size)
        examples = x.reshape(-1, *x.shape[-dimensions - 1 :])
        per_example = _patches(module, examples[:1]).numel()
        for block in examples.split(max(1, PIECE // per_example)):
            block = _normalized(block.double()) if normalized else block.double()
            patches = _patches(module, block)
            for part in patches.split(max(1, PIECE * patches.shape[2] // patches.numel()), 2):
                yield part.flatten(1, 1 + dimensions).flatten(2)


def amplification(module: nn.Module, x: Tensor) -> float:
    """How much larger, relatively, the rounding of an input is after it was normalized, which takes a mean off."""
    apart = tuple(range(-len(module.kernel_size) - 1, 0)) if isinstance(module, CONVOLUTIONS) else (-1,)
    variance, mean = torch.var_mean(x.double(), apart, correction=0)
    return math.sqrt(float(((variance + mean.square()) / (variance + ROW_EPS)).mean()))


def _normalized(x: Tensor) -> Tensor:
    """Each of the first dimension with mean 0 and variance 1. The mean is taken off twice: where it is far above the
    spread its own rounding would be left."""
    apart = tuple(range(1, x.ndim))
    for _ in range(2):
        x = x - x.mean(apart, keepdim=True)
    return x * (x.square().mean(apart, keepdim=True) + ROW_EPS).rsqrt()


def _patches(module: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """A view of the padded input, (groups, N, *positions, channels of the group, *kernel)."""
    dimensions = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    if any(module._reversed_padding_repeated_twice):
        x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for i, (k, step, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        x = x.unfold(2 + i, gap * (k - 1) + 1, step)[..., ::gap]
    x = x.unflatten(1, (module.groups, -1)).movedim(1, 0)
    return x.movedim(2, 2 + dimensions)


def attention_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Query, key and value of a call of `nn.MultiheadAttention`, by the name of the projection that sees them."""
    names = ("query", "key", "value")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {projection: given[name] for projection, name in zip(PROJECTIONS, names, strict=True)}


def attention_mixture(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What the output projection of `nn.MultiheadAttention` sees, which torch gives to no hook.

    The module's own forward with the identity as output projection, and with the random numbers that the real call
    will draw: exact, whatever masks, dropout and options it has.
    """
    out, device = module.out_proj, module.out_proj.weight.device
    before = dict(out._parameters)
    identity = torch.eye(out.in_features, dtype=out.weight.dtype, device=device)
    try:
        out._parameters["weight"] = nn.Parameter(identity, requires_grad=False)
        if out.bias is not None:
            out._parameters["bias"] = nn.Parameter(torch.zeros_like(out.bias), requires_grad=False)
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            return module.forward(*args, **kwargs)[0]
    finally:
        out._parameters.update(before)
