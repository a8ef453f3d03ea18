"""Which of an optimizer's parameters a penalty is on."""

from __future__ import annotations

import fnmatch
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from wellcond.display import begun
from wellcond.hooks import name_of, parameters_of
from wellcond.problem import parameter_kinds, unwrapped

Named = tuple[str, Tensor]
Params = nn.Module | Iterable[Tensor | str | Named] | Tensor | str | Callable[[Tensor], bool] | None


class Selection:
    """A set of parameters: a list, fixed, or a rule, which holds for groups that are added later too.

    Args:
        optimizer: whose parameters.
        params: parameters, or a module's; names or patterns of names ("encoder.*.weight"), with `model`; a predicate of
            a parameter; "all" (or the builtin `all`); None for tensors of two or more dimensions, where the model is
            known without biases and the parameters of normalization layers, embeddings and parametrized weights.
        model: gives the names.

    Raises:
        TypeError, ValueError: for what is not in the model or the optimizer, or selects nothing.
    """

    def __init__(self, optimizer: Optimizer, params: Params, model: nn.Module | None):
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; give the torch.nn.Module that is trained")
        model = None if model is None else unwrapped(model)
        self._model = None if model is None else weakref.ref(model)
        self._cached: set[int] | None = None
        self._know(optimizer, model)
        if model is not None and not self.named:
            raise ValueError("none of the optimizer's parameters is the model's; give the model that it trains")
        self._by_default = params is None
        self.chosen: list[Tensor] | None = None  # or, instead, a rule
        self._rule: Callable[[Tensor], bool] = _any
        if params is None:
            self._rule = _matrix
        elif callable(params) and not isinstance(params, Tensor | nn.Module):
            self._rule = _any if params is all else params
        elif not (isinstance(params, str) and params == "all"):
            self.chosen = self._listed(params, optimizer)
        if not any(True for _ in self.of(optimizer)):
            default = "by default those of two or more dimensions are, embeddings left out: give params="
            empty = "an empty list, or a generator that is used up?"
            why = default if params is None else empty if self.chosen == [] else "the predicate holds for none"
            raise ValueError(f"no parameter of the optimizer is selected for the penalty; {why}")

    def holds(self, p: Tensor) -> bool:
        """Whether the penalty is on p."""
        if self._cached is None:
            listed = self.chosen if self.chosen is not None else self._left_out if self._by_default else []
            self._cached = {id(q) for q in listed}
        if self.chosen is not None:
            return id(p) in self._cached
        return id(p) not in self._cached and bool(self._rule(p))

    def of(self, optimizer: Optimizer) -> Iterator[Tensor]:
        """The selected parameters, in the optimizer's order."""
        model = None if self._model is None else self._model()
        parameters = parameters_of(optimizer)
        if model is not None and len(parameters) != self._seen:
            self._know(optimizer, model)  # a group was added
        return filter(self.holds, parameters)

    def name(self, p: Tensor, optimizer: Optimizer) -> str:
        """The parameter's name where a model or the optimizer knows it, else its place in the optimizer."""
        for name, q in self.named:
            if q is p:
                return name
        return name_of(p, optimizer)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has parameters of its own, and groups that are added to it later are not looked up in this model.
        return {**self.__dict__, "_cached": None, "_model": None}

    def _know(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        """What the model, or the optimizer, says of the optimizer's parameters, and of them alone: the rest of a model
        would be copied and kept with it."""
        inside = set(map(id, parameters_of(optimizer)))
        self._seen = len(parameters_of(optimizer))
        self._cached = None
        self.named: list[Named] = []
        self.embeddings: list[Tensor] = []
        self._left_out: list[Tensor] = []
        if model is None:
            for group in optimizer.param_groups:
                self.named += zip(group.get("param_names", ()), group["params"], strict=False)
            return
        self.named = [(n, p) for n, p in model.named_parameters(remove_duplicate=False) if id(p) in inside]
        self.embeddings = [p for p in parameter_kinds.embeddings(model) if id(p) in inside]
        # A penalty takes the size of what is normalized before use, which the loss doesn't see, to 0, and it to 0/0.
        others = (
            parameter_kinds.normalizations(model) + parameter_kinds.biases(model) + parameter_kinds.normalized(model)
        )
        self._left_out = [p for p in others if id(p) in inside] + self.embeddings

    def _listed(self, params: Any, optimizer: Optimizer) -> list[Tensor]:
        if isinstance(params, nn.Module):
            params = params.parameters()
        try:
            given = [params] if isinstance(params, str | Tensor) else list(params)
        except TypeError:
            raise TypeError(
                f"params is a {type(params).__name__}; give parameters, names (with model=), a predicate or 'all'"
            ) from None
        inside = set(map(id, parameters_of(optimizer)))
        chosen: list[Tensor] = []
        for item in given:
            if isinstance(item, str):
                found = self._by_name(item)
            elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor):
                found = [item]  # from named_parameters()
            elif isinstance(item, Tensor):
                found = [(f"a parameter of shape {tuple(item.shape)}", item)]
            else:
                raise TypeError(f"params has a {type(item).__name__} in it; give parameters or names of parameters")
            for name, p in found:
                if id(p) not in inside:
                    raise ValueError(f"{name} is not in the optimizer; penalize parameters that it trains")
            chosen += [p for _, p in found]
        return chosen

    def _by_name(self, pattern: str) -> list[Named]:
        """One parameter by its name, or those that fit a pattern."""
        if not self.named:
            raise ValueError(f"params has the name {pattern!r}; give model= too, names are looked up there")
        exact: list[Named] = [(name, p) for name, p in self.named if name == pattern]
        found = exact or [(name, p) for name, p in self.named if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            names = begun([name for name, _ in self.named], 8)
            raise ValueError(f"the model has no parameter {pattern!r} that the optimizer trains; it has {names}")
        return found


def _matrix(p: Tensor) -> bool:
    return is_lazy(p) or p.dim() >= 2


def _any(p: Tensor) -> bool:
    return True
