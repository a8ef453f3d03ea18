"""Networks with normalization put in."""

from __future__ import annotations

import copy
import math

from torch import Tensor, nn

import wellcond as wc


def normalized(model: nn.Module, kind: str, x: Tensor) -> nn.Sequential:
    """A sequence of layers with a normalization in front of the first layer that has weights, or of each.

    But for layer norm, and where zeros are padded, it computes what the given one does: its weights are the z of p = Pz
    (theory, section 5.2).

    Args:
        model: layers in sequence.
        kind: "standardized inputs" in front of the first; "batch norm" or "layer norm" in front of each.
        x: the data.
    """
    found: list[nn.Module] = []
    fronts = 1 if kind == "standardized inputs" else math.inf
    for layer in copy.deepcopy(model).children():
        after = layer(x).detach()
        if isinstance(layer, nn.Linear | nn.Conv2d) and fronts > 0:
            fronts -= 1
            standardize = wc.standardize((x, x))
            if kind == "layer norm":
                found.append(nn.GroupNorm(1, x.shape[1], affine=False))
            else:
                kinds = nn.BatchNorm1d if x.ndim == 2 else nn.BatchNorm2d
                batch_norm = kinds(x.shape[1], affine=False, track_running_stats=False)
                found.append(standardize if kind == "standardized inputs" else batch_norm)
                mean, scale = standardize.mean, standardize.scale
                layer = wc.Standardize(-mean / scale, 1 / scale, dim=standardize.dim).folded(layer)
        found.append(layer)
        x = after
    return nn.Sequential(*found)


def with_batch_norm(model: nn.Module) -> nn.Sequential:
    """The same layers with batch norm between each linear layer or convolution and its activation."""
    layers: list[nn.Module] = []
    *hidden, last = model.children()
    for layer in hidden:
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
        elif isinstance(layer, nn.Linear):
            layers.append(nn.BatchNorm1d(layer.out_features))
    return nn.Sequential(*layers, last).double()
