"""Networks with a normalization more, which start from the function of the given one where that can be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from wellcond.normalization import FeatureMoments, Standardize
from wellcond.preconditioners import Preconditioner
from wellcond.problem import Problem, random_state
from wellcond.trials.activations import Site, place_sites
from wellcond.trials.warm_up import WarmUp

LAYERS = (nn.Linear, _ConvNd, nn.RNNBase, nn.Bilinear)
"""What an activation must be followed by to be a hidden one."""


class NotApplicableError(ValueError):
    """A change has no place in this network, or over these data."""


@dataclass
class Network:
    """A changed copy of a problem's network.

    Attributes:
        model: it.
        twins: id of each parameter of the given network → the copy's, also where its values are others.
        notes: what to know about it.
        P: beside the optimizer's; None for I.
        warm_up: how it trains.
        after: name of a layer → the normalization that was put after it; empty unless they stand there one by one.
    """

    model: nn.Module
    twins: dict[int, nn.Parameter]
    notes: list[str] = field(default_factory=list)
    P: Preconditioner | None = None
    warm_up: type[WarmUp] = WarmUp
    after: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def copy_of(cls, model: nn.Module) -> Network:
        """An unchanged copy, without gradients."""
        twin = copy.deepcopy(model)
        twin.zero_grad(set_to_none=True)
        return cls(twin, {id(p): q for p, q in zip(model.parameters(), twin.parameters(), strict=True)})

    def added(self) -> list[nn.Parameter]:
        """Parameters that the given network has not."""
        known = {id(q) for q in self.twins.values()}
        return [q for q in self.model.parameters() if id(q) not in known]

    def problem(self, given: Problem) -> Problem:
        """The problem of the given one with this network in its place: the same data, loss, weights, mode and seed."""
        weights = iter(given.weights)
        return Problem(
            self.model,
            given.loss_fn,
            given.batches,
            loss=given.whole_loss,
            mode=given.mode,
            weight=lambda _: next(weights),
            parameters=[self.twins[id(p)] for p in given.parameters] + [q for q in self.added() if q.requires_grad],
            seed=given.seed,
            dtype=given.dtype,
            memory_limit=given.memory_limit,
            compile=given.compile,
        )


def standardized_inputs(given: Problem) -> Network:
    """Standardization in front of every layer that the data reach first, its weights changed so that they undo it."""
    network = Network.copy_of(given.model)
    problem = network.problem(given)
    moments: dict[str, FeatureMoments] = {}
    sees_data: list[str] = []
    embeddings: list[str] = []

    def record(name: str, layer: nn.Module, x: Tensor) -> None:
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            if not moments:
                embeddings.append(name)
            return
        dim = -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1
        if name not in moments:
            moments[name] = FeatureMoments(dim)
            if problem.is_input(x):
                sees_data.append(name)
        if name in sees_data or name == next(iter(moments)):
            moments[name].add(f"the input of layer {name}", x)

    kinds = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase, nn.Embedding, nn.EmbeddingBag
    problem.record_inputs(kinds, record)
    if embeddings and not sees_data:
        raise NotApplicableError(
            f"the data are tokens of the embedding {embeddings[0]}, which have no mean to take off"
        )
    if not moments:
        raise NotApplicableError(
            "the network has no Linear, convolutional or recurrent layer to standardize the inputs of"
        )
    for name in sees_data or list(moments)[:1]:  # data that are rescaled on the way reach no layer themselves
        _standardize(network, name, moments[name])
    return network


def _standardize(network: Network, name: str, moments: FeatureMoments) -> None:
    layer = network.model.get_submodule(name) if name else network.model
    front = moments.standardization(next(layer.parameters()).dtype)
    if isinstance(layer, nn.RNNBase):
        network.notes.append(f"{name} is recurrent: its weights can't undo the standardization")
    else:
        assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if "weight" not in layer._parameters:
            raise NotApplicableError(
                f"the weight of {name} is parametrized and can't undo a standardization; remove that first"
            )
        mean = front.mean.double() + front.remainder.double()
        inverse = Standardize(-mean / front.scale.double(), 1 / front.scale.double(), dim=front.dim)
        undone = inverse.folded(layer)
        with torch.no_grad():
            layer.weight.copy_(undone.weight)
            assert undone.bias is not None
            if layer.bias is None:
                layer.bias = undone.bias
                network.notes.append(f"{name} has got a bias, which takes up the mean")
            else:
                layer.bias.copy_(undone.bias)
        if isinstance(layer, _ConvNd) and layer.padding_mode == "zeros" and any(layer._reversed_padding_repeated_twice):
            network.notes.append(f"{name} pads with zeros: the function differs at the border")
    _replace(network, name, nn.Sequential(front, layer))


def batch_normalized(given: Problem) -> Network:
    """Batch norm before every hidden activation, γ and β such that it is undone by the statistics over all the data."""
    if given.mode == "eval":
        raise NotApplicableError("batch norm trains by the batch's statistics; make the Problem with mode='train'")
    present = [name for name, m in given.model.named_modules() if isinstance(m, _BatchNorm)]
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
        _replace(network, where.name, _LastFeatures(norm) if where.is_last and where.ndim > 2 else norm)
    return _told_after(network, hidden)


def layer_normalized(given: Problem) -> Network:
    """Layer norm before every hidden activation; γ and β keep the mean and spread of each feature over the data.

    What layer norm does to single examples no γ and β undo, so that the function is another one.
    """
    network, hidden = _with_sites(given)
    for where in hidden:
        like = next(network.model.parameters())
        width = len(where.moments.mean)
        kind: Callable[..., nn.LayerNorm | nn.GroupNorm]
        kind = nn.LayerNorm if where.is_last else lambda width, **to: nn.GroupNorm(1, width, **to)
        norm = kind(width, device=like.device, dtype=like.dtype)
        _replace(network, where.name, norm)
        seen = FeatureMoments(where.moments.dim)

        def record(
            name: str, module: nn.Module, x: Tensor, where: _Hidden = where, seen: FeatureMoments = seen
        ) -> None:
            if name == where.name:
                seen.add(f"the layer-normalized outputs before {where.name}", module.forward(x))

        network.problem(given).record_inputs(type(norm), record)
        spread, target = seen.deviation, where.moments.deviation
        gamma = torch.where(spread > 0, target / spread.clamp_min(1e-300), 1.0)
        with torch.no_grad():
            norm.weight.copy_(gamma)
            norm.bias.copy_(where.moments.mean - gamma * seen.mean)
    network.notes.append("γ and β can't undo layer norm: the function differs")
    return _told_after(network, hidden)


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
    producer: dict[str, str] = {}

    def record(name: str, module: nn.Module, x: Tensor) -> None:
        if isinstance(module, Site):
            if name not in seen:
                before = next((call for call in reversed(calls) if isinstance(call[1], LAYERS)), None)
                producer[name] = before[0] if before else name
                dim = _dim(before[1] if before else None, x)
                seen[name] = _Hidden(name, FeatureMoments(dim), x.ndim, before[0] if before else "")
            seen[name].moments.add(f"the output of layer {producer[name]}", x)
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
    if isinstance(producer, _ConvNd) and x.ndim == 2 + len(producer.kernel_size):
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


def _batch_norm(where: _Hidden, like: Tensor) -> _BatchNorm:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    kind = nn.BatchNorm1d if where.is_last else kinds[where.ndim]
    return kind(len(where.moments.mean), device=like.device, dtype=like.dtype)


def _replace(network: Network, name: str, module: nn.Module) -> None:
    """Put a module, in its parent, where another is; the network itself where that is the other."""
    if not name:
        network.model = module
        return
    parent, _, child = name.rpartition(".")
    setattr(network.model.get_submodule(parent), child, module)
