"""An examination as JSON, under a versioned schema (docs/json.md)."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

import torch

from wellcond.examination import Examination
from wellcond.examination.measurements import Measurements
from wellcond.linalg import Estimate
from wellcond.report.figures import conditioning_figures

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
        "severity": examination.severity.word,
        "findings": [
            {
                "key": f.key,
                "severity": f.severity.word,
                "title": f.title,
                "text": f.text,
                "evidence": {name: _estimate(e) for name, e in f.evidence.items()},
                "remedy": f.remedy,
                "effect": f.effect
                and {
                    "figure": f.effect.figure,
                    "without": _estimate(f.effect.without),
                    "with_remedy": _estimate(f.effect.with_remedy),
                },
            }
            for f in examination.findings
        ],
        "curvature": {
            name: {
                "theta": c.theta,
                "whole_spectrum": c.spectrum is not None,
                **{key: _estimate(e) for key, e in conditioning_figures(c).items()},
                "eigenvalues": {
                    "largest": [_estimate(e) for e in c.top],
                    "smallest": [_estimate(e) for e in c.bottom],
                },
                "products": c.products,
            }
            for name, c in m.figures.items()
        },
        "edge_ratio": _edge(m),
        "row_norms": m.row_norms
        and {"correlation": _estimate(m.row_norms.correlation), "parameters_used": m.row_norms.used},
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
                "largest_eigenvalue": _estimate(layer.largest),
                "mean_share": layer.mean_share,
                "kappa": _estimate(layer.kappa),
                "kappa_centered": _estimate(layer.centered),
                "kappa_scaled": _estimate(layer.scaled),
                "kappa_standardized": _estimate(layer.standardized),
                "kappa_row_normalized": _estimate(layer.row_normalized),
            }
            for layer in m.layers
        ],
        "notes": m.notes,
        "cost": {"products": m.products, "seconds": m.seconds, "gradient_seconds": m.gradient_seconds},
    }


def _edge(m: Measurements) -> dict[str, Any] | None:
    if m.edge is None:
        return None
    return {
        "ratio": _estimate(m.edge.ratio),
        "learning_rate": m.edge.learning_rate,
        "allowed_learning_rate": _estimate(m.edge.allowed),
        "bound": m.edge.bound,
        "rate": m.edge.rate,
    }


def _estimate(e: Estimate) -> dict[str, Any]:
    return {
        "value": _number(e.value),
        "low": _number(e.low),
        "high": _number(e.high),
        "confidence": e.confidence,
        "how": e.how,
    }


def _number(x: float) -> float | str | None:
    """JSON has no infinity and no NaN: "inf" and "-inf" are strings, what is not defined is null."""
    if math.isnan(x):
        return None
    return x if math.isfinite(x) else ("inf" if x > 0 else "-inf")
