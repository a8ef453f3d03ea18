"""Running a user's network without leaving a trace in it, or in the random state."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Python's, numpy's and torch's global random state, seeded inside and restored after."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [] if device.type in ("cpu", "meta") else [device]
    try:
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            seed_torch(seed, device)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and the device's own, and no other.

    `torch.manual_seed` would also queue the seed for devices that are not initialized yet, which outlives us.
    """
    torch.default_generator.manual_seed(seed)
    if device.type not in ("cpu", "meta"):
        module = torch.get_device_module(device)
        with module.device(device) if hasattr(module, "device") else contextlib.nullcontext():
            module.manual_seed(seed)


class Isolation:
    """Stand-ins for a module tree's parameters and buffers, swapped in for as long as a measurement runs.

    Everything a module holds in its own dictionaries is put back on leaving: parameters and buffers by swapping
    tensors (never by writing into them), flags, counters, and attributes that forward sets (the weight that an
    old-style spectral norm computes, the flat weights of an LSTM) by restoring the dictionary.

    Args:
        roots: the modules: the model, and the loss where it is a module.
        mode: "train" or "eval", what is measured. In "train", a model that is in train mode keeps the flags of its
            parts, so that a frozen batch norm stays frozen; one in eval mode is put into train mode whole.
        dtype: floating-point buffers and parameters are converted to it; None leaves them.
    """

    def __init__(self, roots: list[nn.Module], mode: str, dtype: torch.dtype | None):
        self.modules = list(dict.fromkeys(m for root in roots for m in root.modules()))
        self.training = {
            m: (mode == "train" and (m.training or not root.training)) for root in roots for m in root.modules()
        }
        self.dtype = dtype

    @contextlib.contextmanager
    def entered(self, stand_ins: Mapping[int, Tensor], device: torch.device) -> Iterator[None]:
        """Inside, each parameter is its stand-in (by `id`), buffers are those of `fresh_buffers`, and the settings
        are those that make a network differentiable twice."""
        saved = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers), dict(m._modules)) for m in self.modules]
        self._originals = saved
        converted: dict[int, Tensor] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(device.type, enabled=False))
            # Only the math kernel of attention, and no cuDNN recurrence, can be differentiated twice.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(m, nn.RNNBase) for m in self.modules):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            try:
                for m in self.modules:
                    m.training = self.training[m]
                    for name, p in m._parameters.items():
                        if p is not None:
                            stand_in = stand_ins.get(id(p))
                            if stand_in is None:
                                stand_in = converted.setdefault(id(p), self._convert(p.detach()))
                            m._parameters[name] = stand_in  # type: ignore[assignment]
                self.fresh_buffers()
                yield
            finally:
                for m, attributes, parameters, buffers, children in saved:
                    for held, before in (
                        (m._parameters, parameters),
                        (m._buffers, buffers),
                        (m._modules, children),
                    ):
                        held.clear()
                        held.update(before)  # type: ignore[arg-type]
                    m.__dict__.clear()
                    m.__dict__.update(attributes)
                self._originals = []

    def fresh_buffers(self) -> None:
        """Give every module new copies of its original buffers: each evaluation starts from the same state."""
        copies: dict[int, Tensor] = {}

        def copy_of(x: Tensor) -> Tensor:
            if id(x) not in copies:
                copies[id(x)] = self._convert(x.detach()).clone()
            return copies[id(x)]

        for m, attributes, _, buffers, _ in self._originals:
            for name, b in buffers.items():
                m._buffers[name] = None if b is None else copy_of(b)
            for name, x in attributes.items():
                if type(x) is Tensor and x.is_leaf and not x.requires_grad:
                    m.__dict__[name] = copy_of(x)

    def _convert(self, x: Tensor) -> Tensor:
        return x if self.dtype is None or not x.is_floating_point() else x.to(self.dtype)
