"""Classes of what the functions and methods of `wellcond` return; nobody constructs them."""

from wellcond.condition_numbers import Conditioning as Conditioning
from wellcond.examination import Examination as Examination
from wellcond.examination import Finding as Finding
from wellcond.examination import SavedExamination as SavedExamination
from wellcond.examination import Severity as Severity
from wellcond.forecasts import Curve as Curve
from wellcond.forecasts import Forecast as Forecast
from wellcond.linalg import Eigenvalues as Eigenvalues
from wellcond.linalg import Estimate as Estimate
from wellcond.linalg import SpectralDensity as SpectralDensity
from wellcond.monitor import History as History
from wellcond.monitor import Record as Record
from wellcond.normalization import LayerConditioning as LayerConditioning
from wellcond.penalties import Sparsity as Sparsity
from wellcond.report import Comparison as Comparison
from wellcond.stability import CriticalSharpness as CriticalSharpness
from wellcond.stability import EdgeRatio as EdgeRatio
from wellcond.stability import SuggestedLearningRate as SuggestedLearningRate
from wellcond.steps import Preconditioning as Preconditioning
from wellcond.steps import Regularization as Regularization
from wellcond.steps import Reparameterization as Reparameterization
from wellcond.variants import WhatIf as WhatIf
