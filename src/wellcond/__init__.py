"""wellcond: how well conditioned a PyTorch training run is, what makes it so, and what fixes it.

"Theory, section …" in a docstring is that section of docs/theory.md.
"""

from wellcond import monitor, optim, penalties, preconditioners, report, results
from wellcond.condition_numbers import Effort, conditioning
from wellcond.curvature import EmpiricalFisher, GaussNewton, Hessian, jacobi, row_scaling
from wellcond.examination import examine, read_examination
from wellcond.forecasts import Candidate, forecast
from wellcond.linalg import eigenvalues, spectral_density
from wellcond.monitor import Monitor, read_history
from wellcond.normalization import Standardize, layer_block, layer_conditioning, standardize
from wellcond.penalties import sparsity
from wellcond.preconditioners import BatchNormPreconditioner, DiagonalPreconditioner, Preconditioner, preconditioner_of
from wellcond.problem import Problem, TrainingRun
from wellcond.report import compare
from wellcond.stability import critical_sharpness, edge_ratio, suggest_learning_rate
from wellcond.steps import precondition, regularizations_of, regularize, reparameterize
from wellcond.variants import what_if

# Results know no page and no plot: what draws them is registered here, so that imports only go down.
results.Examination.renderer = report
results.History.renderer = monitor

__version__ = "0.1.0"

__all__ = [
    "BatchNormPreconditioner",
    "Candidate",
    "DiagonalPreconditioner",
    "Effort",
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "Monitor",
    "Preconditioner",
    "Problem",
    "Standardize",
    "TrainingRun",
    "compare",
    "conditioning",
    "critical_sharpness",
    "edge_ratio",
    "eigenvalues",
    "examine",
    "forecast",
    "jacobi",
    "layer_block",
    "layer_conditioning",
    "optim",
    "penalties",
    "precondition",
    "preconditioner_of",
    "preconditioners",
    "read_examination",
    "read_history",
    "regularizations_of",
    "regularize",
    "reparameterize",
    "results",
    "row_scaling",
    "sparsity",
    "spectral_density",
    "standardize",
    "suggest_learning_rate",
    "what_if",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
