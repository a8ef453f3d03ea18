"""The rows of H: what a layer multiplies with its weight, one row per example, token or patch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""Of `nn.MultiheadAttention`, those of query, key and value."""

LARGEST = 1e150
"""Numbers above are refused: their squares overflow in float64."""

ROW_EPS = 1e-5
"""ε of `nn.LayerNorm`."""

PIECE = 2**20
"""Numbers in the rows that are made at once: 8 MB. A convolution's patches take kernel-size times its input."""


def blocks(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Examples of a convolution, or of another module rows, (n, …), so many that what they give is held at once."""
    dimensions = _dimensions(module)
    examples = x.reshape(-1, *x.shape[-dimensions - 1 :])
    size = _patches(module, examples[:1]).numel() if dimensions else x.shape[-1]
    yield from examples.split(max(1, PIECE // size))


def rows_of_block(module: nn.Module, block: Tensor) -> Iterator[Tensor]:
    """The rows of a block: (groups, n, width), float64; with one group if not a convolution.

    At once unless it is one large example. A row holds its entries in the order of `weight[i].flatten()`. They are
    copies.
    """
    dimensions = _dimensions(module)
    if not dimensions:
        yield block[None].to(torch.float64, copy=True)
        return
    patches = _patches(module, block)
    for part in patches.split(max(1, PIECE * patches.shape[2] // patches.numel()), 2):
        yield part.to(torch.float64, copy=True).flatten(1, 1 + dimensions).flatten(2)


def layer_normalized(module: nn.Module, block: Tensor) -> tuple[Tensor, float]:
    """A block in float64 with each row, or example over channels and positions, of mean 0 and variance 1, ε = 1e-5;
    and how much larger its relative rounding became, which taking a mean off does."""
    apart = tuple(range(1, block.ndim))
    x = block.double()
    mean = x.mean(apart, keepdim=True)
    # Taken off first: where it is far above the spread its own rounding would be left.
    normalized, _, scale = torch.native_layer_norm(x - mean, x.shape[1:], None, None, ROW_EPS)
    return normalized, math.sqrt(float((1 + (mean.square() - ROW_EPS) * scale.square()).mean()))


def _dimensions(module: nn.Module) -> int:
    return len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else 0


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    """A view of the padded input, (groups, N, *positions, channels of the group, *kernel)."""
    assert isinstance(module, CONVOLUTIONS)
    dimensions = len(module.kernel_size)
    if any(padding(module)):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = nn.functional.pad(x, padding(module), mode=mode)
    for i, (k, step, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        x = x.unfold(2 + i, gap * (k - 1) + 1, step)[..., ::gap]
    x = x.unflatten(1, (module.groups, -1)).movedim(1, 0)
    return x.movedim(2, 2 + dimensions)


def padding(module: Convolution) -> list[int]:
    """What a convolution puts before and behind each dimension, the last one first, as `nn.functional.pad` takes it."""
    if module.padding == "same":
        more = [gap * (k - 1) for k, gap in zip(module.kernel_size, module.dilation, strict=True)]
    else:
        more = [0 if isinstance(p, str) else 2 * p for p in module.padding]
    return [part for m in reversed(more) for part in (m // 2, m - m // 2)]


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
