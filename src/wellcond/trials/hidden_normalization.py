"""A normalization before every hidden activation, which starts from the function of the given network where it can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wellcond.normalization import CONVOLUTIONS, FeatureMoments
from wellcond.problem import Problem, random_state
from wellcond.trials.activations import Site, place_sites
from wellcond.trials.network import Network, NotApplicableError

TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
LAYERS = nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.RNNBase, nn.Bilinear
"""What an activation must be followed by to be a hidden one."""

BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm


def batch_normalized(given: Problem) -> Network:
    """Batch norm before every hidden activation, γ and β such that it is undone by the statistics over all the data."""
    if given.mode == "eval":
        raise NotApplicableError("batch norm trains by the batch's statistics; make the Problem with mode='train'")
    present = [name for name, m in given.model.named_modules() if isinstance(m, BATCH_NORMS)]
    if present:
        raise NotApplicableError(f"the network has batch norm already ({', '.join(present[:4])}); take another change")
    network, hidden = _with_sites(given)
    for where in hidden:
        if where.moments.fewest < 2:
            raise NotApplicableError(
                "batch norm has no statistics of a single example; give larger batches, or 'layer norm'"
            )
        norm = _batch_norm(where, next(network.model.parameters()))
        mean, variance, n = where.moments.mean, where.moments.deviation.square(), where.moments.count
        with torch.no_grad():
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.copy_(mean)
            norm.get_buffer("running_mean").copy_(mean)
            norm.get_buffer("running_var").copy_(variance * n / (n - 1))
        network.replace(where.name, _LastFeatures(norm) if where.is_last and where.ndim > 2 else norm)
    return _told_after(network, hidden)


def layer_normalized(given: Problem) -> Network:
    """Layer norm before every hidden activation; γ and β keep the mean and spread of each feature over the data.

    What layer norm does to single examples no γ and β undo, so that the function is another one.
    """
    network, hidden = _with_sites(given)
    for where in hidden:
        _normalize_layer(network, given, where)
    network.notes.append("γ and β can't undo layer norm: the function differs")
    return _told_after(network, hidden)


def _normalize_layer(network: Network, given: Problem, where: _Hidden) -> None:
    like = next(network.model.parameters())
    kind: Callable[..., nn.LayerNorm | nn.GroupNorm]
    kind = nn.LayerNorm if where.is_last else lambda width, **to: nn.GroupNorm(1, width, **to)
    norm = kind(len(where.moments.mean), device=like.device, dtype=like.dtype)
    network.replace(where.name, norm)
    seen = FeatureMoments(where.moments.dim)

    def record(name: str, module: nn.Module, x: Tensor) -> None:
        if name == where.name:
            seen.add(f"the layer-normalized outputs before {where.name}", module.forward(x))

    network.problem(given).record_inputs(type(norm), record)
    spread, target = seen.deviation, where.moments.deviation
    gamma = torch.where(spread > 0, target / spread.clamp_min(1e-300), 1.0)
    with torch.no_grad():
        norm.weight.copy_(gamma)
        norm.bias.copy_(where.moments.mean - gamma * seen.mean)


@dataclass
class _Hidden:
    """A site before a hidden activation, after a layer, in the order of the forward pass."""

    name: str
    moments: FeatureMoments
    ndim: int
    layer: str

    @property
    def is_last(self) -> bool:
        """Whether the features are on the last dimension."""
        return self.moments.dim == -1


def _with_sites(given: Problem) -> tuple[Network, list[_Hidden]]:
    """A copy with sites before the activations, and the hidden ones with the statistics of what they see."""
    for traced in (False, True):
        network = Network.copy_of(given.model)
        if given.mode == "eval" or not given.model.training:  # as a Problem sets it; tracing reads it
            network.model.train(given.mode == "train")
        with random_state(given.seed, given.device):
            placed = place_sites(network.model, traced=traced)
        if placed is not None:
            network.model = placed
            hidden, repeated = _recorded(network, given)
            if hidden and not repeated:
                return network, hidden
    raise NotApplicableError(
        "no hidden activation was found to put a normalization before: none is a module that is called once in a pass, "
        "or torch.fx can't trace the network; give each activation a module of its own (nn.ReLU())"
    )


def _recorded(network: Network, given: Problem) -> tuple[list[_Hidden], bool]:
    """Sites that a layer follows, and whether a site is called more than once in a pass."""
    problem = network.problem(given)
    calls: list[tuple[str, nn.Module]] = []
    seen: dict[str, _Hidden] = {}

    def record(name: str, module: nn.Module, x: Tensor) -> None:
        if isinstance(module, Site):
            if name not in seen:
                before = next((call for call in reversed(calls) if isinstance(call[1], LAYERS)), None)
                dim = _dim(before[1] if before else None, x)
                seen[name] = _Hidden(name, FeatureMoments(dim), x.ndim, before[0] if before else "")
            seen[name].moments.add(f"the output of layer {seen[name].layer or name}", x)
        calls.append((name, module))

    problem.record_inputs((Site, *LAYERS), record)
    batches = len(problem.batches)
    names = [name for name, module in calls if isinstance(module, Site)]
    repeated = any(names.count(name) > batches for name in seen)
    one_pass = calls[: len(calls) // batches]
    last = max((i for i, (_, module) in enumerate(one_pass) if not isinstance(module, Site)), default=-1)
    before_last = {name for name, _ in one_pass[:last]}
    return [hidden for name, hidden in seen.items() if name in before_last], repeated


def _dim(producer: nn.Module | None, x: Tensor) -> int:
    """Where the features are: on dimension 1 of what a convolution gives, else on the last."""
    if isinstance(producer, (*CONVOLUTIONS, *TRANSPOSED)) and x.ndim == 2 + len(producer.kernel_size):
        return 1 - x.ndim
    return 1 - x.ndim if producer is None and x.ndim > 3 else -1


def _told_after(network: Network, hidden: list[_Hidden]) -> Network:
    """With the layers named, where each is followed by one torch module and has as many outputs."""
    found = {where.layer: network.model.get_submodule(where.name) for where in hidden}
    own = {name: module for name, module in found.items() if not isinstance(module, _LastFeatures)}
    if len(own) == len(hidden) and all(_fits(network.model, where) for where in hidden):
        network.after = own
    return network


def _fits(model: nn.Module, where: _Hidden) -> bool:
    layer = model.get_submodule(where.layer) if where.layer else model
    outputs = getattr(layer, "out_features", None) or getattr(layer, "out_channels", None)
    return outputs == len(where.moments.mean)


class _LastFeatures(nn.Module):
    """Batch norm with the features on the last of more than two dimensions."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normalized: Tensor = self.norm(x.flatten(0, -2))
        return normalized.view_as(x)


def _batch_norm(where: _Hidden, like: Tensor) -> nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d:
    kinds: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]]
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    kind = nn.BatchNorm1d if where.is_last else kinds[where.ndim]
    return kind(len(where.moments.mean), device=like.device, dtype=like.dtype)
