"""The learning rate and the weight decay that each parameter really gets (theory, sections 1 and 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wellcond.preconditioners import DiagonalPreconditioner, preconditioner_of, steps_of
from wellcond.problem import Problem, biases, embeddings, normalizations

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 48


@dataclass(frozen=True)
class Distribution:
    """Of a positive figure over the entries of one parameter.

    Attributes:
        parameter: its name.
        kind: "weight", "bias", "normalization" or "embedding".
        entries: number of them.
        quantiles: at `QUANTILES`.
        counts: entries between neighbouring edges of the `Histogram`.
    """

    parameter: str
    kind: str
    entries: int
    quantiles: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return self.quantiles[QUANTILES.index(0.5)]


@dataclass(frozen=True)
class Histogram:
    """Of a positive figure over the entries of all parameters.

    Attributes:
        edges: evenly apart in the logarithm; empty without entries above 0.
        parameters: one distribution for every parameter.
    """

    edges: tuple[float, ...]
    parameters: list[Distribution]


@dataclass(frozen=True)
class StepSizes:
    """What the optimizer's last step made of one learning rate and one weight decay.

    Attributes:
        learning_rate: αP_ii², what multiplies a coordinate's gradient, momentum aside.
        decay: the fraction of itself that a coordinate loses to weight decay in a step: α·τ decoupled, αP_ii²·τ
            through the gradient, where it counts as often as momentum repeats it.
    """

    learning_rate: Histogram
    decay: Histogram


def step_sizes(problem: Problem, optimizer: Any) -> StepSizes:
    """Read off a live optimizer.

    Raises:
        TypeError: if its steps are of no diagonal P, as under a given P that mixes coordinates.
        ValueError: as `preconditioner_of`.
    """
    P = preconditioner_of(optimizer)
    if not isinstance(P, DiagonalPreconditioner):
        raise TypeError(f"the preconditioner is a {type(P).__name__} and mixes coordinates: none has a rate of its own")
    squared = {id(p): scale.double().square() for p, scale in zip(P.parameters, P.scales, strict=True)}
    steps = {id(step.parameter): step for step in steps_of(optimizer)}
    rates: list[Tensor] = []
    decays: list[Tensor] = []
    for p in problem.parameters:
        step, scale = steps[id(p)], squared[id(p)].expand(p.shape).flatten()
        m = step.momentum
        # The correction of an averaging momentum is gone after its first steps.
        rate = scale * step.learning_rate * (1.0 if m.averaged else step.correction)
        repeats = m.a + m.b * (1.0 if m.averaged else m.c / (1 - m.beta))
        rates.append(rate)
        decays.append(rate * step.coupled * repeats + step.learning_rate * step.decoupled)
    kinds = _kinds(problem)
    named = [(name, kinds.get(id(p), "weight")) for name, p in zip(problem.names, problem.parameters, strict=True)]
    return StepSizes(_histogram(named, rates), _histogram(named, decays))


def _kinds(problem: Problem) -> dict[int, str]:
    model = problem.model
    listed = {"bias": biases(model), "normalization": normalizations(model), "embedding": embeddings(model)}
    return {id(p): kind for kind, parameters in listed.items() for p in parameters}


def _histogram(named: Sequence[tuple[str, str]], values: Sequence[Tensor]) -> Histogram:
    positive = torch.cat([v[v > 0].cpu() for v in values])
    edges = torch.empty(0, dtype=torch.float64)
    if len(positive):
        # Rates that are all the same are one bin around them.
        low, high = math.log10(float(positive.min())) - 1e-3, math.log10(float(positive.max())) + 1e-3
        edges = torch.logspace(low, high, BINS + 1 if high - low > 0.01 else 2, dtype=torch.float64)
    found = []
    for (name, kind), v in zip(named, values, strict=True):
        v = v.cpu()
        ordered = v.sort().values
        at = [ordered[round(q * (len(v) - 1))].item() for q in QUANTILES]
        counts = torch.bucketize(v[v > 0], edges).bincount(minlength=len(edges) + 1)[1 : len(edges)]
        found.append(Distribution(name, kind, len(v), tuple(at), tuple(counts.tolist())))
    return Histogram(tuple(edges.tolist()), found)
