"""Running a user's network without leaving a trace in it, or in the random state."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wellcond import private_torch

RANDOM = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
"""What can hold a random state of its own."""


@contextlib.contextmanager
def random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Python's, numpy's and torch's global random state, seeded inside and restored after."""
    devices = [] if device.type in ("cpu", "meta") else [device]
    with torch.random.fork_rng(devices, device_type=device.type), states_kept([random, np.random]):
        seed_all(seed, device)
        yield


@contextlib.contextmanager
def states_kept(generators: Iterable[Any]) -> Iterator[None]:
    """The generators are afterwards in the states that they were in."""
    before = [(g, _state(g)) for g in generators]
    try:
        yield
    finally:
        for generator, state in before:
            _restore(generator, state)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if hasattr(generator, "getstate") else generator.get_state()


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif hasattr(generator, "setstate"):
        generator.setstate(state)
    else:
        generator.set_state(state)


def seed_all(seed: int, device: torch.device) -> None:
    """Seed Python, numpy, torch's CPU generator and the device's own, and no other.

    `torch.manual_seed` would also queue the seed for devices that are not initialized yet, which outlives us.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if device.type not in ("cpu", "meta"):
        module = torch.get_device_module(device)
        with module.device(device) if hasattr(module, "device") else contextlib.nullcontext():
            module.manual_seed(seed)


@contextlib.contextmanager
def plain_settings(device: torch.device) -> Iterator[None]:
    """Gradients on, and neither inference mode nor autocast, whatever the caller has set."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


class Isolation:
    """Stand-ins for a module tree's parameters and buffers, swapped in for as long as a measurement runs.

    Everything a module holds in its own dictionaries is put back on leaving: parameters and buffers by swapping
    tensors (never by writing into them), flags, counters, and attributes that forward sets (the weight that an
    old-style spectral norm computes, the flat weights of an LSTM) by restoring the dictionary.

    Args:
        roots: the modules: the model, and the loss where it is a module.
        measured: the parameters that get a leaf of their own, in order.
        mode: "train" or "eval", what is measured. In "train", a model that is in train mode keeps the flags of its
            parts, so that a frozen batch norm stays frozen; one in eval mode is put into train mode whole.
        dtype: floating-point buffers and parameters are converted to it; None leaves them.
        beside: other modules that the loss may use, such as a discriminator or a teacher. They keep their flags, and
            their parameters, which no forward pass writes into, are not copied.

    Attributes:
        training: all modules, and whether each is in train mode while a measurement runs.
    """

    def __init__(
        self,
        roots: list[nn.Module],
        measured: list[nn.Parameter],
        mode: str,
        dtype: torch.dtype | None,
        beside: Sequence[nn.Module] = (),
    ):
        own = {m: (mode == "train" and (m.training or not root.training)) for root in roots for m in root.modules()}
        self.training = own | {m: m.training for root in beside for m in root.modules() if m not in own}
        held = {id(p) for m in own for p in m._parameters.values()}
        self._lent = {id(p) for m in self.training for p in m._parameters.values()} - held
        self.measured, self.dtype = measured, dtype
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in self.training)
        self._saved: list[tuple[nn.Module, dict[str, Any], dict[str, Any], dict[str, Any]]] = []

    @contextlib.contextmanager
    def entered(self, device: torch.device) -> Iterator[None]:
        """Inside, the settings are those that make a network differentiable twice; `renew` before each forward."""
        self._saved = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in self.training]
        before: list[tuple[Any, Any]] = []
        for m, attributes, parameters, buffers in self._saved:
            own = (x for name, x in attributes.items() if type(x) in (list, dict, set) and not name.startswith("_"))
            before += [(m.__dict__, attributes), (m._parameters, parameters), (m._buffers, buffers)]
            before += [(x, copy.copy(x)) for x in (m._modules, *own)]
        recurrence = torch.backends.cudnn.flags(enabled=False) if self._recurrent else contextlib.nullcontext()
        # Only the math kernel of attention, and no cuDNN recurrence, can be differentiated twice.
        with plain_settings(device), sdpa_kernel(SDPBackend.MATH), recurrence, private_torch.as_written():
            try:
                for m, training in self.training.items():
                    m.training = training
                yield
            finally:
                for container, held in before:
                    container.clear()
                    (container.extend if isinstance(container, list) else container.update)(held)
                self._saved = []

    def renew(self, given: Mapping[int, Tensor]) -> list[Tensor]:
        """Give every module new copies of what it holds, so that each evaluation starts from the same state; returns
        the leaves that stand for the measured parameters.

        Copies, because a forward pass may write into them: batch norm its statistics, a renormed embedding its
        weight.

        Args:
            given: by the id of a tensor held, what to copy instead of it.
        """
        copies: dict[int, Any] = {}

        def copy_of(x: Any) -> Any:
            if id(x) not in copies:
                if isinstance(x, Tensor):
                    value = self.convert(given.get(id(x), x))
                    copies[id(x)] = value if id(x) in self._lent else value.clone()
                else:
                    copies[id(x)] = copy.deepcopy(x)
            return copies[id(x)]

        leaves = [copy_of(p).requires_grad_() for p in self.measured]
        for m, attributes, parameters, buffers in self._saved:
            for held, originals in ((m._parameters, parameters), (m._buffers, buffers)):
                for name, x in originals.items():
                    held[name] = None if x is None else copy_of(x)
            for name, x in attributes.items():
                if _is_state(x) or isinstance(x, RANDOM):
                    m.__dict__[name] = copy_of(x)
        return leaves

    def held(self) -> list[Tensor]:
        """Every tensor that `renew` copies, once; inside `entered`."""
        found = list(self.measured)
        for _, attributes, parameters, buffers in self._saved:
            found += [x for x in (*parameters.values(), *buffers.values()) if x is not None]
            found += [x for x in attributes.values() if _is_state(x)]
        return list({id(x): x for x in found}.values())

    def convert(self, x: Tensor) -> Tensor:
        """A tensor cut off from its graph, in the dtype that is measured in."""
        return x.detach() if self.dtype is None or not x.is_floating_point() else x.detach().to(self.dtype)


def _is_state(x: Any) -> bool:
    """Whether an attribute of a module is a tensor that its forward pass may write into."""
    return type(x) is Tensor and x.is_leaf and not x.requires_grad
