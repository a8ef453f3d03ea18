"""Running a user's network without leaving a trace in it, or in the random state."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wellcond import private_torch

RANDOM = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
"""What can hold a random state of its own."""

_PLAIN = {type(None), bool, int, float, str, tuple, list, dict, set, torch.Size}
"""Most attributes of modules, which the slower question need not be asked of."""


@contextlib.contextmanager
def random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Python's, numpy's and torch's global random state, seeded inside and restored after."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    on_cpu = device.type in ("cpu", "meta")
    with contextlib.nullcontext() if on_cpu else torch.random.fork_rng([device], device_type=device.type):
        try:
            seed_all(seed, device)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.default_generator.set_state(cpu)


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
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
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
    """

    def __init__(
        self,
        roots: list[nn.Module],
        measured: list[nn.Parameter],
        mode: str,
        dtype: torch.dtype | None,
        beside: Sequence[nn.Module] = (),
    ):
        self.training = {m: m.training for root in beside for m in root.modules()}
        own = {m: (mode == "train" and (m.training or not root.training)) for root in roots for m in root.modules()}
        self.training |= own
        self.modules = [*own, *(m for m in self.training if m not in own)]
        held = {id(p) for m in own for p in m._parameters.values()}
        self._lent = {id(p) for m in self.training for p in m._parameters.values()} - held
        self.measured, self.dtype = measured, dtype
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in self.modules)
        self._saved: list[tuple[nn.Module, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = []

    @contextlib.contextmanager
    def entered(self, device: torch.device) -> Iterator[None]:
        """Inside, the settings are those that make a network differentiable twice; `renew` before each forward."""
        self._saved = [
            (m, dict(m.__dict__), dict(m._parameters), dict(m._buffers), dict(m._modules)) for m in self.modules
        ]
        collections = [
            (x, copy.copy(x))
            for _, attributes, *_ in self._saved
            for name, x in attributes.items()
            if type(x) in (list, dict, set) and not name.startswith("_")
        ]
        # Only the math kernel of attention, and no cuDNN recurrence, can be differentiated twice.
        with plain_settings(device), sdpa_kernel(SDPBackend.MATH), contextlib.ExitStack() as stack:
            if self._recurrent:
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(private_torch.as_written())
            try:
                for m, training in self.training.items():
                    if m.training != training:
                        m.training = training
                yield
            finally:
                for m, attributes, *held in self._saved:
                    current: list[dict[str, Any]] = [m._parameters, m._buffers, m._modules]
                    for now, before in zip(current, held, strict=True):
                        now.clear()
                        now.update(before)
                    m.__dict__.clear()
                    m.__dict__.update(attributes)
                for collection, before in collections:
                    collection.clear()
                    (collection.extend if isinstance(collection, list) else collection.update)(before)
                self._saved = []

    def renew(self, given: Mapping[int, Tensor] | None = None) -> list[Tensor]:
        """Give every module new copies of what it holds, so that each evaluation starts from the same state; returns
        the leaves that stand for the measured parameters.

        Copies, because a forward pass may write into them: batch norm its statistics, a renormed embedding its
        weight.

        Args:
            given: by the id of a tensor held, what to copy instead of it.
        """
        given = given or {}
        copies: dict[int, Any] = {}

        def copy_of(x: Any) -> Any:
            if id(x) not in copies:
                value = given.get(id(x))
                value = value if value is not None else x
                if isinstance(x, Tensor):
                    copies[id(x)] = self.convert(value) if id(x) in self._lent else self.convert(value).clone()
                else:
                    copies[id(x)] = copy.deepcopy(x)
            return copies[id(x)]

        leaves = [copy_of(p).requires_grad_() for p in self.measured]
        for m, attributes, parameters, buffers, _ in self._saved:
            for held, originals in ((m._parameters, parameters), (m._buffers, buffers)):
                for name, x in originals.items():
                    held[name] = None if x is None else copy_of(x)
            for name, x in attributes.items():
                if _is_state(x) or (type(x) not in _PLAIN and isinstance(x, RANDOM)):
                    m.__dict__[name] = copy_of(x)
        return leaves

    def held(self) -> list[Tensor]:
        """Every tensor that `renew` copies, once; inside `entered`."""
        found = list(self.measured)
        for _, attributes, parameters, buffers, _ in self._saved:
            found += [x for x in (*parameters.values(), *buffers.values()) if x is not None]
            found += [x for x in attributes.values() if _is_state(x)]
        return list({id(x): x for x in found}.values())

    def convert(self, x: Tensor) -> Tensor:
        """A tensor cut off from its graph, in the dtype that is measured in."""
        return x.detach() if self.dtype is None or not x.is_floating_point() else x.detach().to(self.dtype)


def _is_state(x: Any) -> bool:
    """Whether an attribute of a module is a tensor that its forward pass may write into."""
    return type(x) is Tensor and x.is_leaf and not x.requires_grad
