"""wellcond: how well conditioned a PyTorch training run is, what makes it so, and what mends it.

"Theory, section …" in a docstring is that section of docs/theory.md.
"""

from wellcond import monitor as monitor
from wellcond import optim as optim
from wellcond import penalties as penalties
from wellcond import preconditioners as preconditioners
from wellcond import report as report
from wellcond.conditioning import Conditioning as Conditioning
from wellcond.conditioning import Effort as Effort
from wellcond.conditioning import conditioning as conditioning
from wellcond.curvature import EmpiricalFisher as EmpiricalFisher
from wellcond.curvature import GaussNewton as GaussNewton
from wellcond.curvature import Hessian as Hessian
from wellcond.curvature import jacobi as jacobi
from wellcond.curvature import row_scaling as row_scaling
from wellcond.examination import Examination as Examination
from wellcond.examination import Finding as Finding
from wellcond.examination import SavedExamination as SavedExamination
from wellcond.examination import Severity as Severity
from wellcond.examination import examine as examine
from wellcond.examination import read_examination as read_examination
from wellcond.forecast import Candidate as Candidate
from wellcond.forecast import Curve as Curve
from wellcond.forecast import Forecast as Forecast
from wellcond.forecast import forecast as forecast
from wellcond.linalg import Eigenvalues as Eigenvalues
from wellcond.linalg import Estimate as Estimate
from wellcond.linalg import SpectralDensity as SpectralDensity
from wellcond.linalg import eigenvalues as eigenvalues
from wellcond.linalg import spectral_density as spectral_density
from wellcond.monitor import History as History
from wellcond.monitor import Monitor as Monitor
from wellcond.monitor import Record as Record
from wellcond.monitor import read_history as read_history
from wellcond.normalization import LayerConditioning as LayerConditioning
from wellcond.normalization import Standardize as Standardize
from wellcond.normalization import layer_block as layer_block
from wellcond.normalization import layer_conditioning as layer_conditioning
from wellcond.normalization import standardize as standardize
from wellcond.penalties import Sparsity as Sparsity
from wellcond.penalties import sparsity as sparsity
from wellcond.preconditioners import BatchNormPreconditioner as BatchNormPreconditioner
from wellcond.preconditioners import Diagonal as Diagonal
from wellcond.preconditioners import Preconditioner as Preconditioner
from wellcond.preconditioners import preconditioner_of as preconditioner_of
from wellcond.problem import Problem as Problem
from wellcond.problem import TrainingRun as TrainingRun
from wellcond.report import Comparison as Comparison
from wellcond.report import compare as compare
from wellcond.stability import CriticalSharpness as CriticalSharpness
from wellcond.stability import EdgeRatio as EdgeRatio
from wellcond.stability import SuggestedLearningRate as SuggestedLearningRate
from wellcond.stability import critical_sharpness as critical_sharpness
from wellcond.stability import edge_ratio as edge_ratio
from wellcond.stability import suggest_learning_rate as suggest_learning_rate
from wellcond.steps import Preconditioning as Preconditioning
from wellcond.steps import Regularization as Regularization
from wellcond.steps import Reparameterization as Reparameterization
from wellcond.steps import precondition as precondition
from wellcond.steps import regularizations_of as regularizations_of
from wellcond.steps import regularize as regularize
from wellcond.steps import reparameterize as reparameterize
from wellcond.what_if import WhatIf as WhatIf
from wellcond.what_if import what_if as what_if

# Results know no page and no plot: what draws them is registered here, so that imports only go down.
Examination.renderer = report
History.renderer = monitor

__version__ = "0.1.0"
