"""The batch-normalization preconditioner with the statistics of all the data, held fixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wellcond.normalization.batch_norm import BatchNormPreconditioner
from wellcond.normalization.standardize import Moments
from wellcond.problem import Problem, random_state
from wellcond.problem.batches import move
from wellcond.what_if.networks import Network


def batch_norm_preconditioned(given: Problem) -> Network:
    """The network as it is, and P = VD/q (theory, section 5.3) of the means and variances over all the data."""
    network = Network.copy_of(given.model)
    P = BatchNormPreconditioner(network.model)
    moments: dict[str, Moments] = {}

    def record(name: str, layer: nn.Module, x: Tensor) -> None:
        dim = -1 - len(layer.kernel_size) if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else -1
        moments.setdefault(name, Moments(dim)).add(f"the input of layer {name}", x)

    network.problem(given).record_inputs((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), record)
    buffers = [b.clone() for b in network.model.buffers()]
    training = {m: m.training for m in network.model.modules()}
    # Its own hooks count the rows of a batch; they don't follow what a Problem evaluates.
    with random_state(given.seed, given.device), torch.enable_grad():
        network.model.train()
        batch = move(given.batches[0], given.device, next(network.model.parameters()).dtype)
        if given.whole_loss is not None:
            given.whole_loss(network.model, batch)
        else:
            network.model(batch[0])
    with torch.no_grad():
        for b, before in zip(network.model.buffers(), buffers, strict=True):
            b.copy_(before)
    for m, flag in training.items():
        m.training = flag
    state = P.state_dict()
    for name, layer in state["layers"].items():
        if name in moments:
            layer["mean"] = moments[name].mean.to(layer["mean"])
            layer["variance"] = moments[name].deviation.square().to(layer["variance"])
    P.load_state_dict(state)
    P.remove()
    network.notes.append("the optimizer runs in z = P⁻¹p, P held fixed")
    network.P = P
    return network
