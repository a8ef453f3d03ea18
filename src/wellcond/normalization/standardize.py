"""Standardization of the inputs as a module: in front of a network, or folded into its first layer."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wellcond.normalization.rows import CONVOLUTIONS, Convolution, padding

FOLDED = 1e-6
"""`fold_into` warns where outputs differ by more than this, or by more than eight roundings, of the largest."""


class Standardize(nn.Module):
    """x ↦ (x − mean)/scale, feature by feature; fixed numbers, nothing to train.

    Floating-point inputs keep their dtype; integers become that of `mean`.

    Args:
        mean: of each feature, (d,).
        scale: of each feature, (d,), positive.
        dim: of the features, counted from the end: −1 for (…, d), −3 for images (…, C, h, w).
        constant: (d,), bool: which features never varied.

    Attributes:
        mean, scale: buffers, (d,).
        remainder: buffer, (d,): what rounding to the dtype took off `mean`. A mean 10⁶ times the spread would otherwise
            be off by up to 6 % of the spread in float32.

    Source: theory, section 5.2.
    """

    mean: Tensor
    remainder: Tensor
    scale: Tensor
    is_constant: Tensor

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor,
        *,
        dim: int = -1,
        constant: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if mean.ndim != 1 or mean.shape != scale.shape:
            raise ValueError(f"got mean {tuple(mean.shape)} and scale {tuple(scale.shape)}; give two vectors (d,)")
        if dim >= 0:
            raise ValueError(f"got dim={dim}; count it from the end: -1 for (…, d), -3 for images (…, C, h, w)")
        self.dim = dim
        rounded = mean.to(dtype or mean.dtype)
        scale = scale.to(rounded.dtype)
        if not bool((scale > 0).all() & scale.isfinite().all() & rounded.isfinite().all()):
            raise ValueError("mean and scale must be finite, and scale positive")
        self.register_buffer("mean", rounded)
        self.register_buffer("remainder", (mean.double() - rounded.double()).to(rounded.dtype))
        self.register_buffer("scale", scale)
        self.register_buffer("is_constant", torch.zeros_like(mean, dtype=torch.bool) if constant is None else constant)

    @property
    def constant(self) -> list[int]:
        """Features that never varied over the data; their scale is 1."""
        return self.is_constant.nonzero().flatten().tolist()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < -self.dim or x.shape[self.dim] != len(self.mean):
            raise ValueError(
                f"got inputs of shape {tuple(x.shape)}; there are {len(self.mean)} features, on dimension {self.dim}"
            )
        shape = (-1, *(1,) * (-1 - self.dim))
        result = (x - self.mean.view(shape) - self.remainder.view(shape)) / self.scale.view(shape)
        return result.to(x.dtype) if x.is_floating_point() else result

    def fold_into(self, layer: nn.Module) -> nn.Module:
        """A layer whose outputs are those of `layer(self(x))`, at no cost: W/scale and b − (W/scale)·mean.

        A convolution that pads with zeros is refused: standardized zeros stand for the mean of the data, so that no
        weights give the same at the border. Other kinds of padding repeat the data and are exact.

        Equal to rounding, which grows with the means: in float32 to about 1e-7 of the largest output times how many
        standard deviations a mean is. It is measured, and more than 1e-6 warns.

        Args:
            layer: nn.Linear, Conv1d, Conv2d or Conv3d over these features; it is left as it is.

        Returns:
            A copy with other weights, and a bias in any case.

        Raises:
            TypeError, ValueError: for another kind of layer, other features, and padding with zeros.

        >>> x = torch.tensor([[1.0, 200.0], [3.0, 600.0]])
        >>> standardization, layer = Standardize(x.mean(0), x.std(0)), nn.Linear(2, 1)
        >>> torch.allclose(standardization.fold_into(layer)(x), layer(standardization(x)))
        True
        """
        self._check_folds(layer)
        assert isinstance(layer, nn.Linear | Convolution)
        folded = self.folded(layer)
        dtype, error = layer.weight.dtype, self._difference(layer, folded)
        if error > max(FOLDED, 8 * torch.finfo(dtype).eps):
            far = float(((self.mean.double() + self.remainder.double()) / self.scale.double()).abs().max())
            warnings.warn(
                f"folded: outputs in {dtype} differ by {error:.1g} of the largest, as a mean is {far:.2g} standard "
                "deviations and products with it are rounded; keep the module in front, or use float64",
                stacklevel=2,
            )
        return folded

    def _difference(self, layer: nn.Linear | Convolution, folded: nn.Linear | Convolution) -> float:
        """Largest difference of outputs, relative to the largest output, on normal inputs of this mean and scale."""
        size: list[int] = []
        if isinstance(layer, CONVOLUTIONS):  # one patch, or what can be padded
            pads = padding(layer)[::-2]
            sizes = zip(layer.kernel_size, layer.dilation, pads, strict=True)
            size = [max(gap * (k - 1), pad) + 1 for k, gap, pad in sizes]
        z = torch.randn(256, len(self.mean), *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        shape = (-1, *(1,) * len(size))
        mean, scale = self.mean.double() + self.remainder.double(), self.scale.double()
        x = (z.to(mean.device) * scale.view(shape) + mean.view(shape)).to(layer.weight)
        with torch.no_grad():
            expected = layer(self(x))
            return float((folded(x) - expected).abs().max() / expected.abs().max().clamp_min(1e-30))

    def folded(self, layer: nn.Linear | Convolution) -> nn.Linear | Convolution:
        """The copy that `fold_into` makes, unchecked."""
        W = layer.weight.detach()
        groups = layer.groups if isinstance(layer, CONVOLUTIONS) else 1
        # (groups, out/groups, in/groups, positions of the kernel)
        kernel = W.double().reshape(groups, len(W) // groups, W.shape[1], -1)
        mean, scale = self.mean.double() + self.remainder.double(), self.scale.double()
        kernel = kernel / scale.view(groups, 1, -1, 1)
        shift = (kernel.sum(3) @ mean.view(groups, -1, 1)).flatten()
        bias = -shift if layer.bias is None else layer.bias.detach().double() - shift
        folded = copy.deepcopy(layer)
        trainable = layer.weight.requires_grad if layer.bias is None else layer.bias.requires_grad
        weight = kernel.reshape(W.shape).to(W.dtype)
        folded.weight = nn.Parameter(weight, layer.weight.requires_grad)
        folded.bias = nn.Parameter(bias.to(W.dtype), trainable)
        return folded

    def _check_folds(self, layer: nn.Module) -> None:
        if parametrize.is_parametrized(layer):
            raise ValueError("the layer's weight is parametrized; remove the parametrization before folding into it")
        if isinstance(layer, nn.Linear):
            expected, width = -1, layer.in_features
        elif isinstance(layer, CONVOLUTIONS):
            expected, width = -1 - len(layer.kernel_size), layer.in_channels
            if any(padding(layer)) and layer.padding_mode == "zeros" and bool(self.mean.any()):
                raise ValueError(
                    "the convolution pads with zeros, which stand for the mean once the inputs are standardized: no "
                    'weights give the same at the border; build it with padding_mode="replicate" or without padding, '
                    "or keep the standardization in front"
                )
        else:
            raise TypeError(f"the layer is a {type(layer).__name__}; give an nn.Linear, Conv1d, Conv2d or Conv3d")
        if self.dim != expected or len(self.mean) != width:
            raise ValueError(
                f"the layer takes {width} features on dimension {expected}; these statistics are of {len(self.mean)} "
                f"on dimension {self.dim}: make them with standardize(…, dim={expected}) from what reaches the layer"
            )
