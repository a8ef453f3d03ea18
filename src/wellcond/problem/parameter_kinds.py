"""What kinds of parameters a model has."""

from __future__ import annotations

import re

from torch import nn

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_BIAS = re.compile(r"(^|[._])bias(_[a-z]+)?$")
_NORMALIZED = re.compile(r"(^|\.)parametrizations\.|_(orig|g|v)$")


def embeddings(model: nn.Module) -> list[nn.Parameter]:
    """Tables of embeddings."""
    tables = _modules(model, "Embedding", nn.Embedding, nn.EmbeddingBag)
    return [p for m in tables for p in m.parameters(recurse=False)]


def normalizations(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of normalization layers."""
    return [p for m in normalization_layers(model) for p in m.parameters(recurse=False)]


def normalization_layers(model: nn.Module) -> list[nn.Module]:
    """Those layers, with parameters or without."""
    return _modules(model, "Norm", *_NORMS)


def biases(model: nn.Module) -> list[nn.Parameter]:
    """Biases, by their names."""
    return [p for name, p in model.named_parameters() if _BIAS.search(name)]


def normalized(model: nn.Module) -> list[nn.Parameter]:
    """What is normalized before use, by weight or spectral norm: the loss does not depend on its scale."""
    return [p for name, p in model.named_parameters() if _NORMALIZED.search(name)]


def _modules(model: nn.Module, ending: str, *kinds: type[nn.Module]) -> list[nn.Module]:
    """Modules of these kinds, or of a class whose name ends so."""
    return [m for m in model.modules() if isinstance(m, kinds) or type(m).__name__.endswith(ending)]
