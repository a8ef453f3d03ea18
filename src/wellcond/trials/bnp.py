"""The batch-normalization preconditioner: with the statistics of all the data, and as it trains."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wellcond.normalization import FeatureMoments
from wellcond.preconditioners import BatchNormPreconditioner, preconditioner_of
from wellcond.problem import LossNotFiniteError, Problem, move, random_state
from wellcond.steps import precondition
from wellcond.trials.networks import Network
from wellcond.trials.warm_up import WarmedUp, WarmUp, like


def batch_norm_preconditioned(given: Problem) -> Network:
    """The network as it is, and P = VD/q (theory, section 5.3) of the means and variances over all the data."""
    network = Network.copy_of(given.model)
    P = BatchNormPreconditioner(network.model)
    problem = network.problem(given)
    moments: dict[str, FeatureMoments] = {}

    def record(name: str, layer: nn.Module, x: Tensor) -> None:
        dim = -1 - len(layer.kernel_size) if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else -1
        moments.setdefault(name, FeatureMoments(dim)).add(f"the input of layer {name}", x)

    problem.record_inputs((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), record)
    # Its own hooks count the rows of a batch; they don't follow what a Problem evaluates.
    with _training(problem):
        _loss(problem, 0)
    state = P.state_dict()
    for name, layer in state["layers"].items():
        if name in moments:
            layer["mean"] = moments[name].mean.to(layer["mean"])
            layer["variance"] = moments[name].deviation.square().to(layer["variance"])
    P.load_state_dict(state)
    P.remove()
    network.P, network.warm_up = P, PreconditionedWarmUp
    network.notes.append("κ for the statistics of all the data; trained by precondition, whose statistics move")
    return network


class PreconditionedWarmUp(WarmUp):
    """Training under `precondition(optimizer, BatchNormPreconditioner(model))`, from statistics 0 and 1."""

    def run(self, factor: float, steps: int) -> WarmedUp | None:
        if not factor:
            return super().run(factor, steps)
        problem = self.problem
        P = BatchNormPreconditioner(problem.model)
        groups = [[problem.parameters[i] for i in group] for group in self.places]
        optimizer = like(self.optimizer, groups, factor)
        precondition(optimizer, P)
        losses: list[float] = []
        try:
            with _training(problem):
                for k in range(steps):
                    loss = _loss(problem, k % len(problem.batches))
                    losses.append(float(loss.detach()))
                    if not math.isfinite(losses[-1]):
                        return None
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            return self.warmed(factor, losses, optimizer, lambda: preconditioner_of(optimizer))
        except LossNotFiniteError:
            return None
        finally:
            P.remove()
            optimizer.zero_grad()
            self.move_to(self.start)


@contextlib.contextmanager
def _training(problem: Problem) -> Iterator[None]:
    """Inside, the network itself trains, and not what stands for it; buffers, flags and random state are put back."""
    model = problem.model
    buffers, flags = [b.clone() for b in model.buffers()], {m: m.training for m in model.modules()}
    try:
        with random_state(problem.seed, problem.device), torch.enable_grad():
            if not model.training:
                model.train()
            yield
    finally:
        with torch.no_grad():
            for b, before in zip(model.buffers(), buffers, strict=True):
                b.copy_(before)
        for m, flag in flags.items():
            m.training = flag


def _loss(problem: Problem, index: int) -> Tensor:
    """The loss of a batch as a training loop takes it."""
    batch = move(problem.batches[index], problem.device)
    if problem.whole_loss is not None:
        return problem.whole_loss(problem.model, batch)
    assert problem.loss_fn is not None
    return problem.loss_fn(problem.model(batch[0]), batch[1])
