"""One look at a training run: a few products, on a few batches, from where the last look ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wellcond.condition_numbers import Conditioning, Effort, conditioning
from wellcond.curvature import GaussNewton, Hessian, OutputUnknownError
from wellcond.display import begun
from wellcond.examination import Measurements, Settings, Subject, first_order
from wellcond.linalg import SymmetricOperator, eigenvalues
from wellcond.normalization import NoLayersError, layer_conditioning
from wellcond.preconditioners import NotPreconditionedError, preconditioner_of
from wellcond.problem import Problem, TrainingRun, generators_of, optimized_parameters, states_kept
from wellcond.stability import edge_ratio, takes_products
from wellcond.trials import Trials

TOLERANCE = 0.01
"""Of an eigenvalue, where a run stops by itself."""

FEWEST, MOST = 4, 20
"""Products for an eigenvalue: below four a start says more than the run, and a warm one takes fewer than twenty."""

KAPPA = Effort(extremes=20, count=1, probes=3, probe_steps=1, trace_probes=3, gradient_steps=8)
"""Products for κ̄ and κ_eff of each of G and PᵀGP."""

EDGE, PLAIN, CONDITION, LAYERS = "edge", "plain", "condition", "layers"
"""Parts of a measurement, the most urgent first: λ_max(PᵀHP) and the edge ratio, in every measurement; λ_max(H); κ of G
and PᵀGP; what layers see."""


@dataclass
class Look:
    """What one look saw.

    Attributes:
        measurements: for the findings; what was not measured is missing in it.
        subject: for the findings too; its trials try nothing.
        seconds: by part.
    """

    measurements: Measurements
    subject: Subject
    seconds: dict[str, float] = field(default_factory=dict)


class Looking:
    """Measures a run at its parameters as they are, without a trace.

    Args:
        model, loss_fn, loss: as for `wellcond.Problem`.
        batches: all that is looked at.
        seed: of everything random.

    Attributes:
        possible: the parts that this run has.
        product_seconds: of a product and what goes with it, as last measured; None before.
    """

    def __init__(self, model: nn.Module, loss_fn: Any, loss: Any, batches: list[Any], seed: int):
        self.model, self.loss_fn, self.loss, self.batches, self.seed = model, loss_fn, loss, batches, seed
        self.possible = [EDGE, PLAIN, CONDITION, LAYERS]
        self.product_seconds: float | None = None
        self._vectors: dict[tuple[str, int], Tensor] = {}  # by curvature and size, which changes as parameters thaw
        # A loss function or a forward pass may draw from a generator that it finds somewhere.
        self._generators = generators_of(model, loss_fn, loss)

    def problem(self, optimizer: Optimizer, training: bool) -> tuple[Problem, list[str]]:
        """The problem as the run now is: which parameters are trained, and in which mode, may change; and the names of
        the parameters that the optimizer has not."""
        chosen, left_out = optimized_parameters(self.model, optimizer)
        problem = Problem(
            self.model,
            self.loss_fn,
            self.batches,
            loss=self.loss,
            mode="train" if training else "eval",
            parameters=chosen,
            seed=self.seed,
        )
        return problem, left_out

    def probe(self, optimizer: Optimizer, training: bool) -> float:
        """Find out what a look costs, by one with two products; the seconds that one with the fewest will take."""
        took = self.look(optimizer, [EDGE], training, most=2).seconds[EDGE]
        return took + (FEWEST - 2) * (self.product_seconds or 0.0)

    def look(
        self, optimizer: Optimizer, parts: list[str], training: bool, seconds: float = math.inf, most: int = MOST
    ) -> Look:
        """Measure some parts.

        Args:
            optimizer: as it stands.
            parts: which; `EDGE` always, and first.
            training: whether in train or eval mode.
            seconds: that it should not exceed.
            most: products for an eigenvalue.

        Raises:
            Exception: whatever the user's code, or a measurement, raises.
        """
        started = time.perf_counter()
        steps: dict[str, Callable[[Look], None]] = {
            EDGE: partial(self._edge, deadline=started + seconds, most=most),
            PLAIN: self._plain,
            CONDITION: self._condition,
            LAYERS: self._layers,
        }
        with states_kept(self._generators):
            seen = self._opened(optimizer, training)
            with seen.subject.problem:
                for part in parts:
                    steps[part](seen)
                    settle(seen.subject.problem.device)
                    seen.seconds[part] = time.perf_counter() - started - sum(seen.seconds.values())
        seen.measurements.seconds = sum(seen.seconds.values())
        return seen

    def _opened(self, optimizer: Optimizer, training: bool) -> Look:
        """The run as its problem, with its loss and gradient; its optimizer, where that is a preconditioner."""
        problem, left_out = self.problem(optimizer, training)
        P, notes = None, []
        try:
            P = preconditioner_of(optimizer)
        except (NotPreconditionedError, TypeError, ValueError) as error:
            notes.append(f"Measured without the optimizer's preconditioner: {error}.")
        if left_out:
            notes.append(f"Not in the optimizer, taken as frozen: {begun(left_out, 6)}.")
        run = TrainingRun(self.model, self.loss_fn, self.batches, optimizer, self.loss)
        known, no_trials = optimizer if P is not None else None, Trials(run, problem, 0, self.seed)
        subject = Subject(run, problem, known, P, no_trials, notes, left_out)
        return Look(first_order(subject, Settings(mode=problem.mode, quick=True, seed=self.seed)), subject)

    def _edge(self, seen: Look, deadline: float, most: int) -> None:
        m, problem, optimizer = seen.measurements, seen.subject.problem, seen.subject.optimizer
        H, P = Hessian(problem), seen.subject.P
        key = "hessian_preconditioned" if m.preconditioned else "hessian"
        under_P = H.preconditioned(P) if m.preconditioned and P is not None else H
        runs = 1 + (optimizer is not None and takes_products(optimizer))
        m.figures[key] = self._largest(key, under_P, min(most, self._affordable(deadline, runs)))
        if optimizer is not None:
            m.edge = edge_ratio(
                problem,
                optimizer,
                largest=m.figures[key].largest,
                curvature=H,
                max_products=min(most, self._affordable(deadline, 1)),
                start=self._vectors[key, problem.size],
                seed=self.seed,
            )
        m.products += H.products

    def _plain(self, seen: Look) -> None:
        if seen.measurements.preconditioned:
            H = Hessian(seen.subject.problem)
            seen.measurements.figures["hessian"] = self._largest("hessian", H, MOST)
            seen.measurements.products += H.products

    def _affordable(self, deadline: float, runs: int) -> int:
        """Products for the next of some runs that are still to be made."""
        if self.product_seconds is None or math.isinf(deadline):
            return MOST
        left = (deadline - time.perf_counter()) / runs
        return max(FEWEST, min(MOST, int(left / self.product_seconds)))

    def _largest(self, key: str, operator: SymmetricOperator, products: int) -> Conditioning:
        most, before = min(products, operator.size), operator.products
        started = time.perf_counter()
        e = eigenvalues(
            operator,
            tol=TOLERANCE,
            verify=False,
            start=self._vectors.get((key, operator.size)),
            min_products=min(FEWEST, most),
            max_products=most,
            seed=self.seed,
        )
        self._vectors[key, operator.size] = e.vectors[:, 0]
        self.product_seconds = (time.perf_counter() - started) / (operator.products - before)
        return Conditioning.of_ends(e, operator.size)

    def _condition(self, seen: Look) -> None:
        m, P = seen.measurements, seen.subject.P
        try:
            G = GaussNewton(seen.subject.problem)
            kinds: dict[str, SymmetricOperator] = {"gauss_newton": G}
            if m.preconditioned and P is not None:
                kinds["gauss_newton_preconditioned"] = G.preconditioned(P)
            for key, operator in kinds.items():
                m.figures[key] = conditioning(operator, effort=KAPPA, dense_limit=0, seed=self.seed)
            m.products += G.products
        except OutputUnknownError as error:
            self.possible.remove(CONDITION)
            m.notes.append(f"κ̄ and κ_eff are missing: {error}.")

    def _layers(self, seen: Look) -> None:
        try:
            seen.measurements.layers = layer_conditioning(seen.subject.problem)
        except NoLayersError:
            self.possible.remove(LAYERS)


def settle(device: torch.device) -> None:
    """Wait for an accelerator."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
