"""The given training run side by side with the same run and one added normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from wellcond.condition_numbers import Conditioning, Effort, conditioning
from wellcond.curvature import Hessian
from wellcond.forecasts import Curve, forecast
from wellcond.linalg import Estimate
from wellcond.preconditioners import Step, reading_for, unwrapped_optimizer
from wellcond.problem import Problem, check_problem, optimized_parameters
from wellcond.stability import TARGET
from wellcond.trials import CHANGES, Network, Trained, Training, changes_of
from wellcond.variants.result import Variant, WhatIf

T = TypeVar("T")

AS_IT_IS = "as it is"
EFFORT = Effort(extremes=40, probes=4, probe_steps=20, trace_probes=16, gradient_steps=40)
"""Products for the figures of each variant, some 200."""

TOLERANCE = 0.1
"""Of the forecast's trust, and of the predicted loss: this fraction of the change that is predicted."""

STILL_FALLING, SPREAD = 0.25, 0.05
"""Half of an interval: of what the loss fell from its mean over the second half of the warm-up to the end, and of the
loss. On 37 cases of seeds 0 and 1 of benchmarks/what_if.py, by the loss after 50 steps, 40 % of the pairs were told
apart so for 100 steps, and 98.6 % of those rightly."""


def what_if(
    problem: Problem,
    optimizer: Any,
    change: str | Sequence[str],
    *,
    warm_up: int = 50,
    steps: int = 50,
    figures: bool = True,
    seed: int = 0,
) -> WhatIf:
    """What a normalization would do to this training run, before anything is changed.

    The conditioning of H and of PᵀHP is measured on the network as it is and changed, P the optimizer's after one
    gradient. Then copies take a few steps of the optimizer, each from new state and at the best of some learning rates
    around the given one, and a forecast is made from there; its loss, as far as it may be trusted, is the prediction.
    Where one variant has no forecast, all are predicted by the loss after the warm-up. At a random start a quadratic
    model says little of the steps that follow: without the warm-up fewer predictions are right.

    - "standardize inputs": mean and scale of what the first layer sees, in front of it, its weights changed so that
      the function is the same.
    - "batch norm": before each hidden activation, γ and β such that the function is the same at the start, with several
      batches up to their own statistics.
    - "layer norm": there too (of a convolution: over channels and positions); γ and β keep each feature's mean and
      spread over the data, but the function is another one.
    - "BNP": the network as it is, trained under `precondition(optimizer, BatchNormPreconditioner(model))`, statistics
      from 0 and 1 as there; its figures are for the statistics of all the data and the optimizer in z = P⁻¹p (theory,
      section 5.3). With an adaptive optimizer there is no forecast: what it makes of PPᵀ∇L is no PPᵀ.

    The given model, its optimizer and random state stay bit for bit what they are.

    Args:
        problem: the network, its loss and data.
        optimizer: over this network's parameters; its class, options, learning rates. New parameters (γ, β) are stepped
            as its first group.
        change: one of these, or several, to be compared side by side.
        warm_up: steps before the forecast, one per batch; with 0 it is made at the start. Half of the steps that the
            variants are to be compared after says which is better in most cases, less in fewer (docs/what-if.md).
        steps: how far to forecast.
        figures: whether to measure the conditioning; else only the forecast is made.
        seed: of random directions.

    Raises:
        TypeError, ValueError: for other changes, an optimizer that can't be read or is over other parameters, a network
            without hidden activations, or with batch norm already; batch norm from single examples; activations that
            are not finite, naming the layer.

    Source: theory, sections 5.2, 5.3 and 6.

    >>> import torch, wellcond as wc
    >>> from wellcond.variants import what_if
    >>> _ = torch.manual_seed(0)
    >>> X = torch.randn(60, 4, dtype=torch.float64) * torch.tensor([1, 10, 0.1, 1]) + 5
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    >>> problem = wc.Problem(model, torch.nn.MSELoss(), (X, X[:, :1] - 5))
    >>> found = what_if(problem, torch.optim.SGD(model.parameters(), lr=0.1), "standardize inputs")
    >>> found.better
    'standardize inputs'
    """
    check_problem(problem)
    if warm_up < 0 or steps < 1:
        raise ValueError(f"got warm_up={warm_up}, steps={steps}; the first is at least 0, the second at least 1")
    names = changes_of(change)
    optimizer = unwrapped_optimizer(optimizer)
    reading_for(optimizer)
    _, missing = optimized_parameters(problem.model, optimizer)
    if lacks := [name for name in problem.names if name in missing]:
        raise ValueError(
            f"the optimizer lacks {lacks[0]}; pass an optimizer over all parameters, or give the Problem "
            "parameters= of those that it has"
        )
    networks = {AS_IT_IS: Network.copy_of(problem.model)} | {name: CHANGES[name](problem) for name in names}
    measured = partial(_variant, warm_up=warm_up, steps=steps, figures=figures, seed=seed)
    variants = {
        name: measured(name, network, Training(network, problem, optimizer)) for name, network in networks.items()
    }
    if any(v.curve is None for v in variants.values()):  # a forecast falls: who has none would look worse
        variants = {k: replace(v, predicted=_predicted(v.loss, None, v.warm_up)) for k, v in variants.items()}
    return WhatIf(variants, warm_up, steps)


def _variant(
    name: str, network: Network, training: Training, *, warm_up: int, steps: int, figures: bool, seed: int
) -> Variant:
    notes = list(network.notes)
    start = training.start()
    hessian, preconditioned = _figures(start, seed, notes) if figures else (None, None)
    warmed = training.best(warm_up) if warm_up else start
    ahead = partial(forecast, warmed.problem, steps=steps, tolerance=TOLERANCE, seed=seed)
    curve = _or_note(notes, "no forecast", lambda: ahead({name: warmed.P()})[name])
    rate = float(training.optimizer.param_groups[0]["lr"]) * (warmed.factor or 1.0)
    edge, suggested = _edge(preconditioned, rate, start.step, len(training.optimizer.param_groups))
    losses = tuple(warmed.losses) if warm_up else ()
    return Variant(
        name=name,
        model=network.model,
        start_loss=network.problem(training.given).loss(),
        conditioning=preconditioned,
        hessian=hessian,
        learning_rate=rate,
        edge_ratio=edge,
        suggested_learning_rate=suggested,
        warm_up=losses,
        loss=warmed.loss,
        curve=curve,
        predicted=_predicted(warmed.loss, curve, losses),
        notes=tuple(notes),
    )


def _figures(start: Trained, seed: int, notes: list[str]) -> tuple[Conditioning | None, Conditioning | None]:
    """Of H and of PᵀHP, which is H where P = I."""
    H, figures = Hessian(start.problem), partial(conditioning, effort=EFFORT, seed=seed)
    with start.problem:
        plain = _or_note(notes, "no κ of H", lambda: figures(H))

        def preconditioned() -> Conditioning | None:
            P = start.P()
            return plain if P is None else figures(H.preconditioned(P))

        return plain, _or_note(notes, "no κ of PᵀHP", preconditioned)


def _or_note(notes: list[str], what: str, measure: Callable[[], T]) -> T | None:
    """What is measured; None with a note where the curvature gives no figure."""
    try:
        return measure()
    except (ValueError, FloatingPointError) as error:
        notes.append(f"{what}: {error}")
        return None


def _predicted(loss: float, curve: Curve | None, warm_up: Sequence[float]) -> Estimate:
    """The loss at the last step of a forecast that may be trusted, or after the warm-up.

    The interval is wide where the loss still fell fast, and where the forecast predicts a large change.
    """
    second_half = warm_up[len(warm_up) // 2 :]
    fell = abs(sum(second_half) / len(second_half) - loss) if second_half else 0.0
    error = STILL_FALLING * fell + SPREAD * abs(loss)
    if curve is None:
        return Estimate(loss, loss - error, loss + error, "the loss after the warm-up, without a forecast")
    held = curve.trusted_steps
    value = float(curve.losses[held])
    changes = (curve.losses - curve.losses[0]).abs()
    error += TOLERANCE * max(float(changes[: held + 1].max()), min(float(changes.max()), abs(loss)))
    return Estimate(value, value - error, value + error, f"forecast for {held} steps after the warm-up")


def _edge(found: Conditioning | None, rate: float, step: Step, groups: int) -> tuple[Estimate, Estimate]:
    """The edge ratio at a rate, and the rate for an edge ratio of a half."""
    why = "" if found and found.largest.low > 0 else "λ_max is not known to be positive"
    why = why if groups == 1 else "the optimizer's groups have rates of their own"
    if why or found is None:
        return Estimate.undefined(why), Estimate.undefined(why)
    correction = 1.0 if step.momentum.averaged else step.correction  # of Adam's first steps: it fades
    ratio = found.largest.scaled(rate * correction / step.bound)
    a = TARGET * rate
    return ratio, Estimate(a / ratio.value, a / ratio.high, a / ratio.low, ratio.how, ratio.confidence)
