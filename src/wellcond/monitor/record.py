"""What one measurement leaves behind: numbers with their intervals, and what changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wellcond.display import number
from wellcond.linalg import Estimate

FIGURES = {
    "edge_ratio": "edge ratio",
    "largest_preconditioned": "λ_max(PᵀHP)",
    "largest": "λ_max(H)",
    "kappa_mean": "κ̄",
    "kappa_effective": "κ_eff",
}
"""Fields of a record that are estimates, as a reader knows them."""

NUMBERS = {"loss": "loss", "learning_rate": "learning rate"}
"""Fields that are plain numbers."""

LABELS = {**FIGURES, **NUMBERS}


@dataclass(frozen=True)
class FindingChange:
    """A finding that is new, has another severity than before, or is gone.

    Attributes:
        key: the finding's.
        severity: now; None if it is gone.
        before: the severity when it was last looked for; None if it is new.
        title: as the finding has it now, or had it.
    """

    key: str
    severity: str | None
    before: str | None
    title: str


@dataclass(frozen=True)
class Record:
    """One measurement of a `Monitor`.

    Attributes:
        step: the optimizer's steps since the monitor was made.
        seconds: since its first step.
        why: "every", "jump" or "request".
        loss: observed in the last step; None where `observe` was not called.
        learning_rate: of the optimizer's first group.
        edge_ratio, largest, largest_preconditioned, kappa_mean, kappa_effective: the edge ratio, λ_max of H and of
            PᵀHP, κ̄ and κ_eff of PᵀGP; None where not measured this time. Without a preconditioner
            `largest_preconditioned` is None, and κ is of G.
        measured_loss, gradient_norm: L(p) and ‖∇L(p)‖ on the batches that are looked at.
        changes: the findings that changed.
        jumps: steps since the last record in which the observed loss jumped.
        failed: why nothing could be measured; None where something was.
        notes: what the reader should know.
        products: curvature-vector products spent.
        cost: seconds that the measurement took.
        share: of the wall time until now that the monitor took, this measurement included.
    """

    step: int
    seconds: float
    why: str
    loss: float | None = None
    learning_rate: float | None = None
    edge_ratio: Estimate | None = None
    largest: Estimate | None = None
    largest_preconditioned: Estimate | None = None
    kappa_mean: Estimate | None = None
    kappa_effective: Estimate | None = None
    measured_loss: float | None = None
    gradient_norm: float | None = None
    changes: list[FindingChange] = field(default_factory=list)
    jumps: list[int] = field(default_factory=list)
    failed: str | None = None
    notes: list[str] = field(default_factory=list)
    products: int = 0
    cost: float = 0.0
    share: float = 0.0

    def estimates(self) -> dict[str, Estimate]:
        """The estimates that there are, by field."""
        known = {name: getattr(self, name) for name in FIGURES}
        return {name: e for name, e in known.items() if e is not None and e.defined}

    def numbers(self) -> dict[str, float]:
        """All figures as plain numbers, by field: an estimate of which only a lower end is known as that, unless it is
        infinite."""
        plain = {name: getattr(self, name) for name in NUMBERS}
        best = {name: e.certain if math.isfinite(e.value) else e.value for name, e in self.estimates().items()}
        return {name: float(x) for name, x in {**plain, **best}.items() if x is not None}

    def texts(self) -> dict[str, str]:
        """The same as a person reads them, estimates with their intervals."""
        estimates = self.estimates()
        return {k: str(estimates[k]) if k in estimates else number(x) for k, x in self.numbers().items()}

    def to_json(self) -> dict[str, Any]:
        """As a line of docs/monitor.md."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Record:
        """What `to_json` wrote; entries that a newer version added are left out.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        given = {name: value for name, value in written.items() if name in cls.__dataclass_fields__}
        for name in FIGURES:
            given[name] = Estimate.from_json(given[name]) if given.get(name) is not None else None
        for name in ("seconds", "cost", "share", "loss", "learning_rate", "measured_loss", "gradient_norm"):
            if given.get(name) is not None:
                given[name] = float(given[name])
        given["changes"] = [FindingChange(**c) for c in given.get("changes", [])]
        return cls(**{**given, "step": int(given["step"])})

    def line(self) -> str:
        """The measurement in one line.

        >>> Record(1200, 8.0, "every", loss=0.25, edge_ratio=Estimate(0.5, 0.5, 0.5, "exact"), share=0.021).line()
        'step 1,200  loss 0.25  edge ratio 0.5  (2.1 % of the time)'
        """
        if self.failed is not None:
            return f"step {self.step:,}  could not be measured, because {self.failed}"
        parts = [f"step {self.step:,}"]
        parts += [] if self.loss is None else [f"loss {number(self.loss)}"]
        parts += [f"{FIGURES[name]} {e}" for name, e in self.estimates().items()]
        parts += [] if self.learning_rate is None else [f"lr {number(self.learning_rate)}"]
        return "  ".join([*parts, f"({number(100 * self.share)} % of the time)"])


def _plain(x: Any) -> Any:
    """For JSON, which has no infinity and no NaN: they are strings, which `float` reads."""
    if isinstance(x, Estimate):
        return x.to_json()
    if isinstance(x, list):
        return [vars(entry) if isinstance(entry, FindingChange) else entry for entry in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
