"""Second derivatives of linear and convolutional layers, without the gradients that nobody reads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FunctionType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from wellcond.curvature.places import Place
from wellcond.problem import graph_nodes

WORTH = 8_000_000
"""Multiplications in a linear layer from which on derivatives written in Python pay. With four layers of 2 million a
product took 2.3 ms by torch's own and 2.4 by these, of 8 million 4.2 and 4.2, of 34 million 10.9 and 10.3. Convolutions
gain always."""

WORTH_RELU = 2**17
"""Elements from which on this pays for a ReLU. With four of 1,024 elements a product took 0.75 ms by torch's own and
0.92 by these, of 65,000 4.9 and 5.0, of 154,000 14.6 and 14.6, of 262,000 28.1 and 27.6."""

_HOOKS = (
    Tensor.register_hook,
    Tensor.register_post_accumulate_grad_hook,
    vars(torch._C.TensorBase)["grad_fn"].__get__,  # modules' hooks, and all that are set on a node
)


class BilinearLayers(TorchFunctionMode):
    """What is evaluated inside has linear and convolutional layers with derivatives of their own.

    With δ the gradient by such a layer's output, that by its weight is δxᵀ. A product with the Hessian differentiates
    this and multiplies by a vector V, which takes δᵀV and Vx, but the value itself is never read. torch computes it all
    the same: one matrix product of nine, of four in a first layer.

    Only layers whose weight and bias are leaves; those in checkpointed parts, under autocast and in torch.func are left
    to torch.

    Args:
        own: whether layers have derivatives of their own at all.

    Attributes:
        unread: while `differentiable_gradient` runs.
        linear: whether that is differentiated by its cotangent alone.
    """

    def __init__(self, own: bool = True) -> None:
        super().__init__()
        self.unread = self.linear = self._hooked = False
        self._places: dict[int, Place] = {}
        self._writing = threading.Lock()
        self._own: dict[Any, Callable[..., Any]] = {}
        if own:
            self._own = {
                nn.functional.linear: self._linear,
                nn.functional.relu: self._relu,
                nn.functional.multi_head_attention_forward: _attention_with(self._linear),
            }
            for function in (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d):
                self._own[function] = partial(self._convolution, function)

    def __enter__(self) -> Self:
        self._hooked = False
        super().__enter__()
        return self

    def derivatives_alone(self, output: Tensor) -> bool:
        """Whether nothing but derivatives of torch's and these will run when what was last evaluated inside is
        differentiated: no function of the user's, no hook on a tensor, a node or a module, nor on what is saved, as by
        checkpointing."""
        return not self._hooked and not any(
            isinstance(node, BackwardCFunction) and getattr(node, "_forward_cls", None) not in (_Layer, _ReLU)
            for node in graph_nodes(output)
        )

    def differentiable_gradient(
        self, output: Tensor, leaves: Sequence[Tensor], cotangent: Tensor | None = None
    ) -> Sequence[Tensor]:
        """The gradient by all leaves of what was evaluated inside, to be differentiated: its values are not to be read.

        Args:
            output: a scalar, or of any shape where a cotangent is given.
            leaves: a gradient by one that is not reached is zero.
            cotangent: of the output's shape, and all that the result will be differentiated by.
        """
        self.unread, self.linear = True, cotangent is not None
        try:
            return torch.autograd.grad(
                output, leaves, cotangent, create_graph=True, allow_unused=True, materialize_grads=True
            )
        finally:
            self.unread = False

    @contextlib.contextmanager
    def writing(self, leaves: Sequence[Tensor], places: Sequence[Place]) -> Iterator[None]:
        """Inside, what a linear layer adds to the result by its weight goes to the leaf's place; all else is in what
        autograd returns. Only for graphs of `derivatives_alone`: others may differentiate a part on their own.

        Args:
            leaves: that are differentiated by.
            places: theirs.
        """
        with self._writing:  # one thread at a time
            self._places = {id(leaf): place for leaf, place in zip(leaves, places, strict=True)}
            try:
                yield
            finally:
                self._places = {}

    def place(self, leaf: int) -> Place | None:
        """Of the leaf of this id, inside `writing`."""
        return self._places.get(leaf)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _HOOKS or _saving_is_hooked():
            self._hooked = True
        return self._own.get(function, function)(*args, **(kwargs or {}))

    def __reduce__(self) -> tuple[Any, ...]:
        return BilinearLayers, (bool(self._own),)  # a copy knows nothing of graphs made here

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if input.ndim < 2 or not _possible(input, weight, bias) or input.numel() * len(weight) < WORTH:
            return nn.functional.linear(input, weight, bias)
        rows = _Layer.apply(self, _Linear(self, id(weight)), input.reshape(-1, input.shape[-1]), weight, bias)
        # To be written into, as by an in-place ReLU, without the detour by what it is a view of.
        return torch.ops.aten._unsafe_view(rows, [*input.shape[:-1], len(weight)])

    def _relu(self, input: Tensor, inplace: bool = False) -> Tensor:
        if inplace or not _possible(input) or input.numel() < WORTH_RELU:
            return nn.functional.relu(input, inplace)
        return _ReLU.apply(self, input)

    def _convolution(
        self,
        function: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or input.ndim != weight.ndim or not _possible(input, weight, bias):
            return function(input, weight, bias, stride, padding, dilation, groups)
        dims = weight.ndim - 2
        settings = [[x] * dims if isinstance(x, int) else list(x) for x in (stride, padding, dilation)]
        return _Layer.apply(self, _Convolution(function, settings, groups), input, weight, bias)


def _possible(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> bool:
    parameters = [p for p in (weight, bias) if p is not None]
    return (
        torch.is_grad_enabled()
        and all(type(t) is Tensor and t.layout == torch.strided and t.dtype == x.dtype for t in (x, *parameters))
        and not x.is_nested
        and (weight is None or weight.ndim > 1)
        and (weight is None or bias is None or bias.shape == weight.shape[:1])
        and all(p.is_leaf and p.requires_grad for p in parameters)
        and not torch.is_autocast_enabled(x.device.type)
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        # A mode of the user's around it may put something else in a layer's place.
        and all(type(mode).__module__.startswith("torch.") for mode in _get_current_function_mode_stack())
        # A checkpointed part runs again in the backward pass, where it must save the same tensors.
        and not _saving_is_hooked()
    )


def _saving_is_hooked() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _attention_with(linear: Callable[..., Tensor]) -> Callable[..., Any]:
    """torch's own function with its linear layers replaced, which a mode does not see in it."""
    names: dict[str, Any] = vars(nn.functional) | {"linear": linear, "has_torch_function": lambda _: False}
    for name, function in vars(nn.functional).items():
        if isinstance(function, FunctionType) and "linear" in function.__code__.co_names:
            names[name] = FunctionType(function.__code__, names, name, function.__defaults__)
            names[name].__kwdefaults__ = function.__kwdefaults__
    apart: Any = names.get("_in_projection_packed")

    def packed(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        if not (q is k and k is v):
            return apart(q, k, v, weight, bias)
        # torch takes the three out one by one; the derivatives of that are filled up with zeros and added.
        return linear(q, weight, bias).unflatten(-1, (3, -1)).movedim(-2, 0).contiguous().unbind()

    names["_in_projection_packed"] = packed
    attention: Callable[..., Any] = names["multi_head_attention_forward"]
    return attention


class _Linear:
    """B(x, W) = xWᵀ, x of one example a row, and its adjoints.

    Args:
        layers: that know where to write.
        leaf: id of the weight.
    """

    def __init__(self, layers: BilinearLayers, leaf: int):
        self.layers, self.leaf = layers, leaf

    def output(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        return nn.functional.linear(x, W, b)

    def plus(self, y: Tensor, x: Tensor, W: Tensor) -> Tensor:
        """y + B(x, W), in y."""
        return y.addmm_(x, W.T)

    def by_input(self, d: Tensor, W: Tensor, x: Tensor) -> Tensor:
        return d @ W

    def by_weight(self, d: Tensor, x: Tensor, W: Tensor) -> Tensor | None:
        place = self.layers.place(self.leaf)
        if place is None:
            return d.T @ x
        place.add_product(d, x)
        return None

    def by_bias(self, d: Tensor) -> Tensor:
        return d.sum(0)


class _Convolution:
    """B(x, W) = x * W, and its adjoints.

    Args:
        function: torch's.
        settings: stride, padding and dilation, each by dimension.
        groups: as torch's.
    """

    def __init__(self, function: Callable[..., Tensor], settings: list[list[int]], groups: int):
        self.function, self.settings, self.groups = function, settings, groups

    def output(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        return self.function(x, W, b, *self.settings, self.groups)

    def plus(self, y: Tensor, x: Tensor, W: Tensor) -> Tensor:
        return y.add_(self.output(x, W, None))

    def by_input(self, d: Tensor, W: Tensor, x: Tensor) -> Tensor:
        return self._adjoint(d, x, W, 0)

    def by_weight(self, d: Tensor, x: Tensor, W: Tensor) -> Tensor:
        return self._adjoint(d, x, W, 1)

    def by_bias(self, d: Tensor) -> Tensor:
        return d.sum([0, *range(2, d.ndim)])

    def _adjoint(self, d: Tensor, x: Tensor, W: Tensor, which: int) -> Tensor:
        unset, wanted = [0] * len(self.settings[0]), [which == i for i in range(3)]
        found: Tensor = torch.ops.aten.convolution_backward(
            d, x, W, None, *self.settings, False, unset, self.groups, wanted
        )[which]
        return found


class _Layer(Function):
    """z = B(x, W) + b."""

    @staticmethod
    def forward(ctx: Any, layers: BilinearLayers, form: Any, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, W, b)
        ctx.layers, ctx.form = layers, form
        output: Tensor = form.output(x, W, b)
        return output

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        x, W, b = ctx.saved_tensors
        layers, form, deeper = ctx.layers, ctx.form, ctx.needs_input_grad[2]
        # A hook on a parameter would read its gradient.
        if layers.unread and not any(p is not None and p._backward_hooks for p in (W, b)):
            if layers.linear:
                x, W = x.detach(), W.detach()
            elif not deeper:
                W = W.detach()
            return None, None, *_LayerGradient.apply(form, d, x, W, deeper, b is not None)
        return (
            None,
            None,
            form.by_input(d, W, x) if deeper else None,
            form.by_weight(d, x, W),
            None if b is None else form.by_bias(d),
        )


class _LayerGradient(Function):
    """The gradients of a layer by its input, and by its weight and bias, of which only the shapes are right."""

    @staticmethod
    def forward(
        ctx: Any, form: Any, d: Tensor, x: Tensor, W: Tensor, deeper: bool, biased: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(d, x, W)
        ctx.form = form
        nothing = d.new_zeros(())
        return (
            form.by_input(d, W, x) if deeper else None,
            nothing.expand(W.shape),
            nothing.expand(W.shape[:1]) if biased else None,
        )

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, V: Tensor | None, v: Tensor | None) -> Any:
        """Of ⟨u, by_input⟩ + ⟨V, by_weight⟩ + ⟨v, by_bias⟩."""
        d, x, W = ctx.saved_tensors
        form, (_, by_d, by_x, by_W, *_) = ctx.form, ctx.needs_input_grad
        pushed = None
        if by_d:
            pushed = form.output(x, torch.zeros_like(W) if V is None else V, v)
            pushed = pushed if u is None else form.plus(pushed, u, W)
        return (
            None,
            pushed,
            form.by_input(d, V, x) if by_x and V is not None else None,
            form.by_weight(d, u, W) if by_W and u is not None else None,
            None,
            None,
        )


class _ReLU(Function):
    """max(x, 0), whose second derivative is zero, and not a tensor of zeros to be added."""

    @staticmethod
    def forward(ctx: Any, layers: BilinearLayers, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        ctx.layers = layers
        return y

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return None, _Masked.apply(d, y.detach()) if ctx.layers.unread else _masked(d, y)


class _Masked(Function):
    """d where y > 0, else 0."""

    @staticmethod
    def forward(ctx: Any, d: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return _masked(d, y)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return _masked(u, y), None


def _masked(d: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(d, y, 0)
