"""Standardization of the inputs from one pass over the data, in front of a network or in its first layer."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wellcond.normalization.rows import CONVOLUTIONS, LARGEST, Convolution, padding
from wellcond.problem import each_batch, random_state

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
        >>> standardization, layer = standardize((x, x)), nn.Linear(2, 1)
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

    def extra_repr(self) -> str:
        return f"{len(self.mean)} features, dim={self.dim}"

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


def standardize(loader: Any, *, dim: int | None = None, seed: int = 0) -> Standardize:
    """Mean and standard deviation of the inputs, as a module to put in front of a network.

    One pass over all of the data, a batch in memory at a time; moments are merged in float64, whatever the sizes of
    the batches. The loader itself is not iterated, no random state moves.

    Args:
        loader: an (input, target) batch, a list of them, a DataLoader, or the inputs alone as one tensor.
        dim: of the features: for inputs (N, d) the last, for images (N, C, h, w) the channels, 1. To be given for
            inputs of three dimensions: 1 for (N, C, length), −1 for (N, time, d).
        seed: of what the data set draws.

    Returns:
        A `Standardize` on the data's device, in their dtype (float32 for integers). A feature that never varies gets
        the scale 1.

    Raises:
        TypeError, ValueError: for data that `Problem` would refuse, inputs that are no tensor (a dict), tokens, values
            that are not finite (naming batch and feature), and a single example.

    Source: theory, section 5.2; Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979.

    >>> X = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    >>> standardization = standardize([(X, X)])
    >>> standardization(X).tolist(), standardization.constant
    ([[-1.0, 0.0], [1.0, 0.0]], [1])
    >>> model = nn.Sequential(standardization, nn.Linear(2, 1))
    """
    moments: FeatureMoments | None = None
    with random_state(seed, torch.device("cpu")):
        batches = [loader] if isinstance(loader, Tensor) else each_batch(loader, pairs=True, seed=seed)
        for i, batch in enumerate(batches):
            x = _inputs(i, batch)
            if moments is None:
                moments = FeatureMoments(_from_the_end(x, dim))
                dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
            moments.add(f"batch {i}", x)
    if moments is None:
        raise ValueError("data is empty: there is no batch to take statistics of")
    return moments.standardization(dtype)


class FeatureMoments:
    """Number, mean, sum of squared deviations and range of each feature, merged batch by batch in float64.

    Args:
        dim: of the features, counted from the end.

    Attributes:
        count: values of each feature.
        mean, squares: (d,), Σ(x − mean)² in `squares`.
        fewest: values of a feature in the smallest batch.
    """

    mean: Tensor
    squares: Tensor

    def __init__(self, dim: int):
        self.dim, self.count, self.fewest = dim, 0, 0

    def add(self, where: str, x: Tensor) -> None:
        """Merge a batch; `where` it came from is named if it is not finite or of another width."""
        if x.ndim < -self.dim or (self.count and x.shape[self.dim] != len(self.mean)):
            width = f"{len(self.mean)} features" if self.count else "features"
            raise ValueError(f"{where} has shape {tuple(x.shape)}; expected {width} on dimension {self.dim}")
        x = x.movedim(self.dim, -1).reshape(-1, x.shape[self.dim]).double()
        if not bool(x.isfinite().all()):
            row, feature = (~x.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"{where}, feature {feature}: a value is {float(x[row, feature])}; mend or drop it first")
        if not len(x):
            raise ValueError(f"{where} has no examples")
        if float(x.abs().max()) > LARGEST:
            raise ValueError(
                f"{where} reaches {float(x.abs().max()):.1g}, whose square overflows; divide the data first"
            )
        mean = x.mean(0)
        deviations = x - mean
        off = deviations.mean(0)  # what rounding left of it
        mean, squares = mean + off, deviations.square().sum(0) - len(x) * off.square()
        if not self.count:
            self.mean, self.squares, self.low, self.high = mean, squares, x.amin(0), x.amax(0)
            self.count = self.fewest = len(x)
            return
        device = self.mean.device
        delta, total = mean.to(device) - self.mean, self.count + len(x)
        self.mean = self.mean + delta * (len(x) / total)
        self.squares = self.squares + squares.to(device) + delta.square() * (self.count * len(x) / total)
        self.low = torch.minimum(self.low, x.amin(0).to(device))
        self.high = torch.maximum(self.high, x.amax(0).to(device))
        self.count, self.fewest = total, min(self.fewest, len(x))

    @property
    def deviation(self) -> Tensor:
        """σ, (d,): the standard deviation over all values; 0 where a feature never varies."""
        return torch.where(self.high > self.low, (self.squares / self.count).sqrt(), 0.0)

    def standardization(self, dtype: torch.dtype) -> Standardize:
        """The module with these statistics.

        Raises:
            ValueError: from one value of each feature.
        """
        if self.count < 2:
            raise ValueError("there is a single example, and no spread without a second one; give more data")
        constant = self.deviation.to(dtype) == 0
        scale = torch.where(constant, 1.0, self.deviation)
        return Standardize(self.mean, scale, dim=self.dim, constant=constant, dtype=dtype)


def _inputs(index: int, batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor):
        what = f"a dict with {', '.join(map(str, list(x)[:4]))}" if isinstance(x, dict) else f"a {type(x).__name__}"
        raise TypeError(
            f"the input of batch {index} is {what}; give (input, target) batches whose input is one tensor, or the "
            "inputs alone as a tensor"
        )
    if x.is_complex():
        raise TypeError(f"the input of batch {index} is complex; give its real and imaginary parts as features")
    if x.dtype in (torch.int32, torch.int64) and x.ndim < 4:
        raise TypeError(
            f"the input of batch {index} is {x.dtype} of shape {tuple(x.shape)}, as tokens of an embedding are, which "
            "have no mean; give numbers as floats (x.float())"
        )
    return x


def _from_the_end(x: Tensor, dim: int | None) -> int:
    """The dimension of the features, counted from the end: 1 of (N, C, h, w) is −3, and so fits (C, h, w)."""
    if x.ndim < 2:
        raise ValueError(f"the inputs have shape {tuple(x.shape)}; expected (N, d): one feature is (N, 1)")
    if dim is None:
        if x.ndim == 3:
            raise ValueError(
                f"the inputs have shape {tuple(x.shape)}; say where the features are: dim=1 for (N, C, length), dim=-1 "
                "for (N, time, d)"
            )
        dim = 1
    if not isinstance(dim, int):
        raise TypeError(f"got dim={dim!r}; give the number of the dimension that the features are on")
    if not -x.ndim < dim < x.ndim or dim == 0:
        raise ValueError(f"got dim={dim} for inputs of shape {tuple(x.shape)}; dimension 0 is that of the examples")
    return dim if dim < 0 else dim - x.ndim
