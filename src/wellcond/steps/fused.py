"""Steps of SGD, Adam and AdamW through a given P in one pass over memory, by compiled C (step.c)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from wellcond.native import compiled as compiled_c
from wellcond.preconditioners import Preconditioner

# Compiling takes a tenth of a second, once a process; a step on fewer entries takes less than calling it does.
WORTH_COMPILING = 2**17
# `Piece` and the `Parameter` in it, of step.c.
_PIECE, _PARAMETER = struct.Struct("5qd"), struct.Struct("4q9d")
_ONE = torch.ones(())
_NO_BIAS = bytes(_PARAMETER.size)
_ARGUMENTS = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int)
_Kernel = Callable[[bytes, int, int], None]
_REALS = (torch.float32, torch.float64)


class FusedStep:
    """The step of some parameters, to be taken in the place of the optimizer's own.

    Attributes:
        parameters: which. On the others P is the identity: their step is the optimizer's own.
    """

    def __init__(self, parameters: list[Tensor], calls: list[tuple[_Kernel, list[bytes]]], packing: _Packing):
        self.parameters, self._calls, self._packing = parameters, calls, packing

    def take(self) -> None:
        """Step parameters and state, by the gradients that were there when this was made."""
        for state, buffer in self._packing.buffers:
            state["momentum_buffer"] = buffer
        if counts := self._packing.counts:
            torch._foreach_add_(counts, _ONE, alpha=1.0)  # a fourth of the time that a number takes
        for kernel, pieces in self._calls:
            kernel(b"".join(pieces), len(pieces), torch.get_num_threads())
        torch.autograd.graph.increment_version(self.parameters)


def fused_step(
    optimizer: Optimizer, P: Preconditioner, parameters: Sequence[Tensor], gram: bool, compiled: bool | None
) -> FusedStep | None:
    """The step of these parameters in z, or with PPᵀg; None where it can't be taken so, or is not worth it.

    It can for exactly torch's SGD, Adam and AdamW, on parameters on the CPU, contiguous, float32 or float64, and a P
    that knows its rows.

    Args:
        optimizer: whose step it is.
        P: over exactly these parameters.
        parameters: which have gradients.
        gram: whether with PPᵀg, or in z.
        compiled: whether to; None for where that pays.
    """
    enough = compiled or (compiled is None and sum(p.numel() for p in parameters) >= WORTH_COMPILING)
    scaled = any(getattr(optimizer, key, None) is not None for key in ("grad_scale", "found_inf"))  # by a GradScaler
    if not enough or scaled or type(optimizer) not in (SGD, Adam, AdamW):
        return None
    dtype = parameters[0].dtype
    rows = P.rowwise() or [] if dtype in _REALS else []
    chosen = [parameters[i] for r in rows for i in r.places]
    packing = _Packing(dtype)
    if not chosen or not packing.add(optimizer, set(map(id, chosen))):
        return None
    pieces: dict[bool, list[bytes]] = {}
    for w, b, scale, mean, q in rows:
        outer = None if b is None else parameters[b]
        piece = packing.piece(parameters[w], outer, scale, mean, q)
        if piece is None:
            return None
        pieces.setdefault(outer is not None, []).append(piece)
    kernels = [_kernel(dtype, *packing.kind, gram, centered) for centered in pieces]
    calls = [(kernel, made) for kernel, made in zip(kernels, pieces.values(), strict=True) if kernel]
    return FusedStep(chosen, calls, packing) if len(calls) == len(pieces) else None


class _Packing:
    """What step.c takes, as bytes.

    Attributes:
        kind: whether the optimizer is Adam, how many tensors of state there are, whether momentum is Nesterov's.
        counts: of the steps of the parameters.
        buffers: momentum that is not there yet, and the states that it belongs to.
    """

    kind: tuple[bool, int, bool]

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype
        self.counts: list[Tensor] = []
        self.buffers: list[tuple[dict[str, Tensor], Tensor]] = []
        self._packed: dict[int, bytes] = {}
        self._used: list[Tensor] = []  # keeps alive what is pointed to

    def add(self, optimizer: Any, chosen: Collection[int]) -> bool:
        """The optimizer's parameters of these ids; False where step.c has no step for them."""
        adam, kinds = isinstance(optimizer, Adam), set()
        for group in optimizer.param_groups:
            members = [p for p in group["params"] if id(p) in chosen]
            if not members:
                continue
            if group["differentiable"] or group.get("amsgrad") or group.get("capturable"):
                return False
            states = 2 if adam else int(group["momentum"] != 0)
            kinds.add((adam, states, bool(group.get("nesterov"))))
            if adam and not all(optimizer.state.get(p) for p in members):
                optimizer._init_group(group, *([] for _ in range(6)))
            lr, decay = float(group["lr"]), float(group["weight_decay"])
            coupled, keep = (0.0, 1 - lr * decay) if group.get("decoupled_weight_decay") else (decay, 1.0)
            decays = (-1.0 if group["maximize"] else 1.0, coupled, keep)
            momentum = self._adam if adam else self._sgd
            for p in members:
                moments, numbers = momentum(p, optimizer.state[p] if states else {}, group, lr)
                if not self._parameter(p, moments, (*decays, *numbers)):
                    return False
        self.kind = kinds.pop()
        return not kinds

    def piece(self, w: Tensor, b: Tensor | None, scale: Tensor, mean: Tensor | None, q: float) -> bytes | None:
        """A parameter with the bias of its rows and with P on the two; None where step.c can't take it."""
        entries, scales = w.numel(), scale.numel()
        outputs = 1 if b is None and scales == entries else len(w)
        if not self._fits(scale) or not (mean is None or self._fits(mean)):
            return None
        self._used += [scale] if mean is None else [scale, mean]
        head = _PIECE.pack(
            outputs,
            entries // max(outputs, 1),
            entries // max(scales, 1),
            scale.data_ptr(),
            0 if mean is None else mean.data_ptr(),
            q,
        )
        return head + self._packed[id(w)] + (_NO_BIAS if b is None else self._packed[id(b)])

    def _adam(self, p: Tensor, state: dict[str, Tensor], group: dict[str, Any], lr: float) -> _Moments:
        first, second = map(float, group["betas"])
        t = float(state["step"]) + 1
        self.counts.append(state["step"])
        numbers = lr / (1 - first**t), 1 - first, second, 1 - second, (1 - second**t) ** -0.5, float(group["eps"])
        return [state["exp_avg"], state["exp_avg_sq"]], numbers

    def _sgd(self, p: Tensor, state: dict[str, Tensor], group: dict[str, Any], lr: float) -> _Moments:
        moments, gain = [], 1 - group["dampening"]
        if group["momentum"]:
            buffer = state.get("momentum_buffer")
            if buffer is None:  # torch makes it of the first gradient, taken whole
                buffer, gain = torch.zeros_like(p), 1.0
                self.buffers.append((state, buffer))
            moments = [buffer]
        return moments, (lr, group["momentum"], gain, 0.0, 0.0, 0.0)

    def _parameter(self, p: Tensor, moments: Sequence[Tensor], numbers: Sequence[float]) -> bool:
        if type(p) not in (nn.Parameter, Tensor) or p.grad is None:
            return False
        tensors, shape = [p, p.grad, *moments], p.shape
        for x in tensors:
            if not self._fits(x) or x.shape != shape:
                return False
        self._used += tensors
        pointers = [x.data_ptr() for x in tensors] + [0] * (4 - len(tensors))
        self._packed[id(p)] = _PARAMETER.pack(*pointers, *numbers)
        return True

    def _fits(self, x: Tensor) -> bool:
        return x.dtype == self._dtype and x.layout == torch.strided and x.is_cpu and x.is_contiguous()


_Moments = tuple[list[Tensor], tuple[float, ...]]


def _kernel(dtype: torch.dtype, adam: bool, states: int, nesterov: bool, gram: bool, centered: bool) -> Any:
    flags = {"ADAM": adam, "STATES": states, "NESTEROV": nesterov, "GRAM": gram, "CENTERED": centered}
    return compiled_c(Path(__file__).with_name("step.c"), "step", _ARGUMENTS, dtype, **flags)
