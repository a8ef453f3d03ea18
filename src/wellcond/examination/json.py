"""An examination as JSON, under a versioned schema (docs/json.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from wellcond.display import number_to_json
from wellcond.examination.figures import KAPPAS
from wellcond.examination.finding import Finding, Severity
from wellcond.examination.measurements import Measurements
from wellcond.examination.step_sizes import QUANTILES
from wellcond.forecasts import Forecast
from wellcond.linalg import Estimate

SCHEMA = "wellcond.examination/1"


def to_json(m: Measurements, findings: Sequence[Finding], interrupted: str) -> dict[str, Any]:
    """The whole examination as plain dictionaries, lists, strings and numbers."""
    return plain(
        {
            "schema": SCHEMA,
            "versions": {"wellcond": version("wellcond"), "torch": torch.__version__},
            "run": {
                **_named(m, "model", "parameters", "examples", "batches", "loss", "gradient_norm", "dtype"),
                **_named(m.settings, "mode", "seed", "curvature"),
                "optimizer": m.optimizer,
                "unreached": m.unreached,
            },
            "interrupted": interrupted or None,
            "severity": Severity.worst(f.severity for f in findings),
            "findings": findings,
            "curvature": {
                name: {
                    "theta": c.theta,
                    "whole_spectrum": c.spectrum is not None,
                    **c.by_name(),
                    "eigenvalues": {"largest": c.top, "smallest": c.bottom},
                    "products": c.products,
                }
                for name, c in m.figures.items()
            },
            "edge_ratio": m.edge
            and {
                **_named(m.edge, "ratio", "learning_rate"),
                "allowed_learning_rate": m.edge.allowed,
                **_named(m.edge, "bound", "rate"),
            },
            "row_norms": m.row_norms and {"correlation": m.row_norms.correlation, "parameters_used": m.row_norms.used},
            "layers": [
                {
                    **_named(layer, "name", "rows", "columns", "rank"),
                    "constant_inputs": layer.constant,
                    "sees_the_data": layer.is_input,
                    "group": layer.group,
                    "groups": len(layer.groups) or 1,
                    "largest_eigenvalue": layer.largest,
                    "mean_share": layer.mean_share,
                    **{key: layer.kappas[label] for key, label in KAPPAS.items()},
                }
                for layer in m.layers
            ],
            "step_sizes": m.step_sizes and {"quantiles": QUANTILES, **vars(m.step_sizes)},
            "forecast": m.forecast and _forecast(m.forecast),
            "notes": m.notes,
            "cost": _named(m, "products", "seconds", "gradient_seconds"),
        }
    )


def _forecast(f: Forecast) -> dict[str, Any]:
    return {
        **_named(f, "steps", "curvature", "products", "forward_passes"),
        "curves": {
            name: {
                "learning_rate": c.learning_rate,
                "momentum": c.momentum.beta,
                **_named(c, "edge_ratio", "diverges", "trusted_steps", "losses", "true_losses"),
            }
            for name, c in f.curves.items()
        },
    }


def _named(x: Any, *attributes: str) -> dict[str, Any]:
    return {name: getattr(x, name) for name in attributes}


def plain(x: Any) -> Any:
    """Findings, estimates and numbers as JSON has them, whatever they are in."""
    if isinstance(x, Severity):
        return x.word
    if isinstance(x, Estimate):
        return x.to_json()
    if dataclasses.is_dataclass(x):
        return plain(vars(x))
    if isinstance(x, torch.Tensor):
        return plain(x.tolist())
    if isinstance(x, Mapping):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    return number_to_json(x) if isinstance(x, float) else x
