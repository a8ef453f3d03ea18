"""Mean and spread of each feature of the inputs, from one pass over the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wellcond.normalization.rows import LARGEST
from wellcond.normalization.standardize import Standardize
from wellcond.problem import each_batch, random_state


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
    >>> model = torch.nn.Sequential(standardization, torch.nn.Linear(2, 1))
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
            raise ValueError(f"{where}, feature {feature}: a value is {float(x[row, feature])}; fix or drop it first")
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
