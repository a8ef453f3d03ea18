"""The places before a network's activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

OTHERS = {
    "GLU",
    "Hardshrink",
    "LogSoftmax",
    "MultiheadAttention",
    "Softmax",
    "Softmax2d",
    "Softmin",
    "Softshrink",
    "Threshold",
}
"""Of the modules that torch calls activations those that act on several features, or cut what is small."""

ACTIVATIONS = tuple(getattr(nn, name) for name in nn.modules.activation.__all__ if name not in OTHERS)

_NAMES = "relu_", "leaky_relu", *(kind.__name__.lower() for kind in ACTIVATIONS)
"""Of functions and methods; some have no function."""
_FUNCTIONS = {getattr(room, name) for room in (nn.functional, torch) for name in _NAMES if hasattr(room, name)}


class Site(nn.Identity):
    """Stands before an activation, until a normalization takes its place."""


class _Activated(nn.Module):
    """A site, and the function that a layer of torch's keeps as its activation."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.site, self.function = Site(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.site(x))


def place_sites(model: nn.Module, *, traced: bool) -> nn.Module | None:
    """The network with a `Site` before each activation; it is changed.

    Args:
        model: a copy that may be changed.
        traced: whether by torch.fx, which also sees functions (F.relu) and each call of a module that is called several
            times; else before the modules alone, which keeps the network's class and control flow.

    Returns:
        None where it can't be done: no activation module, or, untraced, activations among functions that only tracing
        reaches.
    """
    graph = _trace(model)
    if traced:
        return None if graph is None else _in_graph(model, graph)
    if graph is not None and any(_is_activation(node, model) for node in graph.nodes if node.op != "call_module"):
        return None
    return model if _in_modules(model) else None


def _trace(model: nn.Module) -> fx.Graph | None:
    try:
        return fx.Tracer().trace(model)
    except Exception:  # whatever the network's own code raises on proxies
        return None


def _is_activation(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), ACTIVATIONS)
    return (node.op == "call_function" and node.target in _FUNCTIONS) or (
        node.op == "call_method" and node.target in _NAMES
    )


def _in_modules(model: nn.Module) -> bool:
    """Sites before activation modules, and before the functions of torch's transformer layers; whether any is there."""
    found = False
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, ACTIVATIONS):
                parent._modules[name] = nn.Sequential(Site(), child)
                found = True
        if isinstance(parent, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            parent.activation_relu_or_gelu = 0  # else inference takes a fused kernel, which asks no module
            if not isinstance(parent.activation, nn.Module):
                parent.activation = _Activated(parent.activation)
                found = True
    return found


def _in_graph(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    activations = [node for node in graph.nodes if _is_activation(node, model)]
    whole = {str(node.target) for node in graph.nodes if node.op == "call_module" and node not in activations}
    for name in whole:  # torch's own modules, which tracing does not enter
        _in_modules(model.get_submodule(name))
    for i, node in enumerate(activations):
        name = f"before_activation_{i}"
        model.add_module(name, Site())
        source = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(source, fx.Node)
        with graph.inserting_before(node):
            site = graph.call_module(name, (source,))
        node.replace_input_with(source, site)
    return fx.GraphModule(model, graph)
