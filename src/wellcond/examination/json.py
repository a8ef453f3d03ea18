"""An examination as JSON, under a versioned schema (docs/json.md)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from wellcond.examination.examination import Examination
from wellcond.examination.figures import conditioning_figures
from wellcond.examination.measurements import Measurements
from wellcond.examination.step_sizes import QUANTILES, Distribution, StepSizes
from wellcond.forecast import Forecast
from wellcond.linalg import number_to_json

SCHEMA = "wellcond.examination/1"


def to_json(examination: Examination) -> dict[str, Any]:
    """The whole examination as plain dictionaries, lists, strings and numbers."""
    m = examination.measurements
    return {
        "schema": SCHEMA,
        "versions": {"wellcond": version("wellcond"), "torch": torch.__version__},
        "run": {
            "model": m.model,
            "parameters": m.parameters,
            "examples": m.examples,
            "batches": m.batches,
            "loss": m.loss,
            "gradient_norm": m.gradient_norm,
            "dtype": m.dtype,
            "mode": m.settings.mode,
            "seed": m.settings.seed,
            "curvature": m.settings.curvature,
            "optimizer": {"name": m.optimizer.name, "groups": m.optimizer.groups} if m.optimizer else None,
            "unreached": m.unreached,
        },
        "interrupted": examination.interrupted or None,
        "severity": examination.severity.word,
        "findings": [
            {
                "key": f.key,
                "severity": f.severity.word,
                "title": f.title,
                "text": f.text,
                "evidence": {name: e.to_json() for name, e in f.evidence.items()},
                "remedy": f.remedy,
                "effect": f.effect
                and {
                    "figure": f.effect.figure,
                    "without": f.effect.without.to_json(),
                    "with_remedy": f.effect.with_remedy.to_json(),
                },
            }
            for f in examination.findings
        ],
        "curvature": {
            name: {
                "theta": c.theta,
                "whole_spectrum": c.spectrum is not None,
                **{key: e.to_json() for key, e in conditioning_figures(c).items()},
                "eigenvalues": {
                    "largest": [e.to_json() for e in c.top],
                    "smallest": [e.to_json() for e in c.bottom],
                },
                "products": c.products,
            }
            for name, c in m.figures.items()
        },
        "edge_ratio": _edge(m),
        "row_norms": m.row_norms
        and {"correlation": m.row_norms.correlation.to_json(), "parameters_used": m.row_norms.used},
        "layers": [
            {
                "name": layer.name,
                "rows": layer.rows,
                "columns": layer.columns,
                "rank": layer.rank,
                "constant_inputs": layer.constant,
                "sees_the_data": layer.is_input,
                "group": layer.group,
                "groups": len(layer.groups) or 1,
                "largest_eigenvalue": layer.largest.to_json(),
                "mean_share": layer.mean_share,
                "kappa": layer.kappa.to_json(),
                "kappa_centered": layer.centered.to_json(),
                "kappa_scaled": layer.scaled.to_json(),
                "kappa_standardized": layer.standardized.to_json(),
                "kappa_row_normalized": layer.row_normalized.to_json(),
            }
            for layer in m.layers
        ],
        "step_sizes": m.step_sizes and _step_sizes(m.step_sizes),
        "forecast": m.forecast and _forecast(m.forecast),
        "notes": m.notes,
        "cost": {"products": m.products, "seconds": m.seconds, "gradient_seconds": m.gradient_seconds},
    }


def _edge(m: Measurements) -> dict[str, Any] | None:
    if m.edge is None:
        return None
    return {
        "ratio": m.edge.ratio.to_json(),
        "learning_rate": m.edge.learning_rate,
        "allowed_learning_rate": m.edge.allowed.to_json(),
        "bound": m.edge.bound,
        "rate": m.edge.rate,
    }


def _step_sizes(s: StepSizes) -> dict[str, Any]:
    def listed(distributions: list[Distribution]) -> list[dict[str, Any]]:
        return [
            {
                "parameter": d.name,
                "kind": d.kind,
                "entries": d.size,
                "quantiles": list(d.quantiles),
                "counts": list(d.counts),
            }
            for d in distributions
        ]

    return {
        "quantiles": list(QUANTILES),
        "learning_rate": {"edges": list(s.rate_edges), "parameters": listed(s.rates)},
        "decay": {"edges": list(s.decay_edges), "parameters": listed(s.decays)},
    }


def _forecast(f: Forecast) -> dict[str, Any]:
    return {
        "steps": f.steps,
        "curvature": f.curvature,
        "products": f.products,
        "forward_passes": f.forward_passes,
        "curves": {
            name: {
                "learning_rate": c.learning_rate,
                "momentum": c.momentum.beta,
                "edge_ratio": number_to_json(c.edge_ratio),
                "diverges": c.diverges,
                "trusted_steps": c.trusted_steps,
                "losses": [number_to_json(x) for x in c.losses.tolist()],
                "true_losses": {str(step): number_to_json(loss) for step, loss in c.true_losses.items()},
            }
            for name, c in f.curves.items()
        },
    }
