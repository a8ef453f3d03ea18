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

from wellcond.conditioning import Conditioning, Effort, conditioning
from wellcond.curvature import GaussNewton, Hessian, OutputUnknownError
from wellcond.examination import Measurements, Settings, Subject, first_order
from wellcond.linalg import SymmetricOperator, eigenvalues
from wellcond.normalization import NoLayersError, layer_conditioning
from wellcond.preconditioners import NotPreconditionedError, Preconditioner, preconditioner_of
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
        self._vectors: dict[str, Tensor] = {}
        self._names: list[str] = []
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
        if problem.names != self._names:
            self._names = problem.names
            self._vectors.clear()
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
        with states_kept(self._generators):
            return self._look(optimizer, parts, training, seconds, most)

    def _look(self, optimizer: Optimizer, parts: list[str], training: bool, seconds: float, most: int) -> Look:
        started = time.perf_counter()
        problem, left_out = self.problem(optimizer, training)
        P, notes = self._preconditioner(optimizer)
        if left_out:
            notes.append(
                f"Not in the optimizer, taken as frozen: {', '.join(left_out[:6])}{' …' * (len(left_out) > 6)}."
            )
        run = TrainingRun(self.model, self.loss_fn, self.batches, optimizer, self.loss)
        known, no_trials = optimizer if P is not None else None, Trials(run, problem, 0, self.seed)
        subject = Subject(run, problem, known, P, no_trials, notes, left_out)
        m = first_order(subject, Settings(mode=problem.mode, quick=True, seed=self.seed))
        seen = Look(m, subject)
        steps: dict[str, Callable[[], None]] = {
            EDGE: partial(self._edge, problem, optimizer, P, m, started + seconds, most),
            PLAIN: partial(self._plain, problem, m),
            CONDITION: partial(self._condition, problem, P, m),
            LAYERS: partial(self._layers, problem, m),
        }
        with problem:
            for part in parts:
                steps[part]()
                now = _wait(problem, started)
                seen.seconds[part] = now - sum(seen.seconds.values())
        m.seconds = sum(seen.seconds.values())
        return seen

    def _preconditioner(self, optimizer: Optimizer) -> tuple[Preconditioner | None, list[str]]:
        try:
            return preconditioner_of(optimizer), []
        except (NotPreconditionedError, TypeError, ValueError) as error:
            return None, [f"Measured without the optimizer's preconditioner: {error}."]

    def _edge(
        self,
        problem: Problem,
        optimizer: Optimizer,
        P: Preconditioner | None,
        m: Measurements,
        deadline: float,
        most: int,
    ) -> None:
        H = Hessian(problem)
        key, operator = "hessian", H if P is None or not m.preconditioned else H.preconditioned(P)
        if m.preconditioned:
            key = "hessian_preconditioned"
        own_products = P is not None and takes_products(optimizer)
        m.figures[key] = self._largest(key, operator, min(most, self._affordable(deadline, 1 + own_products)))
        if P is not None:
            m.edge = edge_ratio(
                problem,
                optimizer,
                largest=m.figures[key].largest,
                curvature=H,
                max_products=min(most, self._affordable(deadline, 1)),
                start=self._vectors[key],
                seed=self.seed,
            )
        m.products += H.products

    def _plain(self, problem: Problem, m: Measurements) -> None:
        if m.preconditioned:
            H = Hessian(problem)
            m.figures["hessian"] = self._largest("hessian", H, MOST)
            m.products += H.products

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
            start=self._vectors.get(key),
            min_products=min(FEWEST, most),
            max_products=most,
            seed=self.seed,
        )
        self._vectors[key] = e.vectors[:, 0]
        self.product_seconds = (time.perf_counter() - started) / (operator.products - before)
        return Conditioning.of_ends(e, operator.size)

    def _condition(self, problem: Problem, P: Preconditioner | None, m: Measurements) -> None:
        try:
            G = GaussNewton(problem)
            kinds: dict[str, SymmetricOperator] = {"gauss_newton": G}
            if m.preconditioned and P is not None:
                kinds["gauss_newton_preconditioned"] = G.preconditioned(P)
            for key, operator in kinds.items():
                m.figures[key] = conditioning(operator, effort=KAPPA, dense_limit=0, seed=self.seed)
            m.products += G.products
        except OutputUnknownError as error:
            self.possible.remove(CONDITION)
            m.notes.append(f"κ̄ and κ_eff are missing: {error}.")

    def _layers(self, problem: Problem, m: Measurements) -> None:
        try:
            m.layers = layer_conditioning(problem)
        except NoLayersError:
            self.possible.remove(LAYERS)


def _wait(problem: Problem, since: float) -> float:
    """Seconds since then, once the device has done what it was given."""
    settle(problem.device)
    return time.perf_counter() - since


def settle(device: torch.device) -> None:
    """Wait for an accelerator."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
