"""The changes of a network that can be asked about, by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wellcond.normalization import CONVOLUTIONS, FeatureMoments, Standardize, padding
from wellcond.preconditioners import BatchNormPreconditioner
from wellcond.problem import Problem, move
from wellcond.trials.copy_of_run import alone, loss_of, run_of
from wellcond.trials.hidden_normalization import batch_normalized, layer_normalized
from wellcond.trials.network import Network, NotApplicableError


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
        if name not in moments:
            moments[name] = _moments_of_inputs(layer)
            if problem.is_input(x):
                sees_data.append(name)
        if name in sees_data or name == next(iter(moments)):
            moments[name].add(f"the input of layer {name}", x)

    problem.record_inputs((nn.Linear, *CONVOLUTIONS, nn.RNNBase, nn.Embedding, nn.EmbeddingBag), record)
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
        if isinstance(layer, CONVOLUTIONS) and layer.padding_mode == "zeros" and any(padding(layer)):
            network.notes.append(f"{name} pads with zeros: the function differs at the border")
    network.replace(name, nn.Sequential(front, layer))


def batch_norm_preconditioned(given: Problem) -> Network:
    """The network as it is, and P = VD/q (theory, section 5.3) of the means and variances over all the data."""
    network = Network.copy_of(given.model)
    network.P = P = BatchNormPreconditioner(network.model)
    moments: dict[str, FeatureMoments] = {}

    def record(name: str, layer: nn.Module, x: Tensor) -> None:
        moments.setdefault(name, _moments_of_inputs(layer)).add(f"the input of layer {name}", x)

    network.problem(given).record_inputs((nn.Linear, *CONVOLUTIONS), record)
    # The rows of a batch are counted by its own hooks, which don't follow what a Problem evaluates.
    training = copy.deepcopy(network)
    problem = training.problem(given)
    with alone(problem, problem.seed):
        loss_of(run_of(problem), move(problem.batches[0], problem.device))
    assert training.P is not None
    state = training.P.state_dict()
    for name, layer in state["layers"].items():
        if name in moments:
            layer["mean"] = moments[name].mean.to(layer["mean"])
            layer["variance"] = moments[name].deviation.square().to(layer["variance"])
    P.load_state_dict(state)
    P.remove()
    network.notes.append("κ for the statistics of all the data; trained by precondition, whose statistics move")
    return network


def _moments_of_inputs(layer: nn.Module) -> FeatureMoments:
    """Of a layer's features: in front of the positions for a convolution, else on the last dimension."""
    return FeatureMoments(-1 - len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else -1)


CHANGES: dict[str, Callable[[Problem], Network]] = {
    "standardize inputs": standardized_inputs,
    "batch norm": batch_normalized,
    "layer norm": layer_normalized,
    "BNP": batch_norm_preconditioned,
}


def changes_of(change: str | Sequence[str]) -> list[str]:
    """The names that were asked for, once each.

    Raises:
        TypeError, ValueError: for anything else.
    """
    names = [change] if isinstance(change, str) else list(change)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"got a {type(name).__name__} as change; give names: {', '.join(map(repr, CHANGES))}")
        if name not in CHANGES:
            raise ValueError(f"got change={name!r}; there are {', '.join(map(repr, CHANGES))}")
    if not names:
        raise ValueError(f"no change is asked about; there are {', '.join(map(repr, CHANGES))}")
    return list(dict.fromkeys(names))
