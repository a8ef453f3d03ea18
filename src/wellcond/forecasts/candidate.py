"""What a forecast is made for: a preconditioner, with its learning rates and momenta."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from wellcond.display import number
from wellcond.linalg import Estimate
from wellcond.preconditioners import DiagonalPreconditioner, Momentum, Preconditioner, preconditioner_of, steps_of


@dataclass(frozen=True)
class Candidate:
    """A way to go on: P frozen, a learning rate, a momentum.

    Args:
        P: the preconditioner; None for plain gradient descent.
        learning_rate: α, one or several; None for 1/λ_max(PᵀHP).
        momentum: β of heavy ball, 0 ≤ β < 1, or a `Momentum`, one or several.
        largest: λ_max(PᵀHP) where it is already known.
    """

    P: Preconditioner | None = None
    learning_rate: float | Iterable[float] | None = None
    momentum: float | Momentum | Iterable[float | Momentum] = 0.0
    largest: Estimate | None = None

    def __post_init__(self) -> None:
        if self.P is not None and not isinstance(self.P, Preconditioner):
            raise TypeError(f"P is a {type(self.P).__name__}; give a Preconditioner or None")
        for rate in self.rates:
            if rate is not None and not 0 < rate < math.inf:
                raise ValueError(f"got learning_rate={rate}; it is positive and finite")
        for m in _several(self.momentum):
            if not isinstance(m, Momentum) and not 0 <= m < 1:
                raise ValueError(f"got momentum={m}; it is at least 0 and below 1")
        if not self.rates or not self.momenta:
            raise ValueError("got an empty list of learning rates or momenta; leave it out for the default")

    @property
    def rates(self) -> list[float | None]:
        """The learning rates, as a list."""
        return [rate if rate is None else float(rate) for rate in _several(self.learning_rate)]

    @property
    def momenta(self) -> list[Momentum]:
        """The momenta, as a list."""
        return [m if isinstance(m, Momentum) else Momentum.heavy_ball(m) for m in _several(self.momentum)]


def runs_of(candidates: Mapping[str, Any]) -> dict[str, Candidate]:
    """By the name of its curve, a candidate for every learning rate and momentum of every candidate, in order.

    Raises:
        TypeError, ValueError: for what is no candidate, naming it.
    """
    if not isinstance(candidates, Mapping):
        raise TypeError(f"the candidates are a {type(candidates).__name__}; give a dict, name → preconditioner or None")
    if not candidates:
        raise ValueError(
            'there is no candidate to forecast; give a dict such as {"as it is": optimizer, "plain": None}'
        )
    runs: dict[str, Candidate] = {}
    for name, given in candidates.items():
        candidate = _candidate(str(name), given)
        for rate, momentum in itertools.product(candidate.rates, candidate.momenta):
            suffix = f", lr {number(rate)}" if rate is not None and len(candidate.rates) > 1 else ""
            suffix += f", β {number(momentum.beta)}" if len(candidate.momenta) > 1 else ""
            run = f"{name}{suffix}"
            if run in runs:
                raise ValueError(f"two curves would be called {run!r}; give candidates, rates and momenta that differ")
            runs[run] = replace(candidate, learning_rate=rate, momentum=momentum)
    return runs


def _several(x: Any) -> list[Any]:
    one = not isinstance(x, Iterable) or getattr(x, "ndim", None) == 0  # a 0-dim tensor is one number
    return [x] if one else list(x)


def _candidate(name: str, given: Any) -> Candidate:
    if isinstance(given, Candidate):
        return given
    if given is None or isinstance(given, Preconditioner):
        return Candidate(given)
    if isinstance(given, torch.optim.Optimizer) or isinstance(getattr(given, "optimizer", None), torch.optim.Optimizer):
        return as_it_is(given)
    raise TypeError(
        f"candidate {name!r} is a {type(given).__name__}; give a preconditioner, an optimizer, None for plain gradient "
        "descent, or a Candidate with its learning rate and momentum"
    )


def as_it_is(optimizer: Any) -> Candidate:
    """The optimizer's own P, rate and momentum; groups with rates of their own by scaling P.

    Raises:
        ValueError: for groups with different momenta, or a rate of 0.
    """
    steps, P = steps_of(optimizer), preconditioner_of(optimizer)
    momentum = steps[0].momentum
    if any(s.momentum != momentum for s in steps):
        raise ValueError("the optimizer's groups have different momenta; a forecast follows one: give Candidates")
    # An averaging momentum makes its early steps' correction itself.
    rates = [s.learning_rate * (1.0 if momentum.averaged else s.correction) for s in steps]
    rate = max(rates)
    if len(set(rates)) > 1:
        roots = [
            torch.tensor(max(r / rate, 1e-30) ** 0.5, dtype=torch.float64, device=s.parameter.device)
            for s, r in zip(steps, rates, strict=True)
        ]
        P = P @ DiagonalPreconditioner([s.parameter for s in steps], roots)
    return Candidate(P, rate, momentum)
