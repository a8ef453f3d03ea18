"""wellcond: how well conditioned a PyTorch training run is, what makes it so, and what mends it."""

from wellcond import optim as optim
from wellcond import penalties as penalties
from wellcond import preconditioners as preconditioners
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
from wellcond.examination import Severity as Severity
from wellcond.examination import TrainingRun as TrainingRun
from wellcond.examination import examine as examine
from wellcond.forecast import Candidate as Candidate
from wellcond.forecast import Curve as Curve
from wellcond.forecast import Forecast as Forecast
from wellcond.forecast import forecast as forecast
from wellcond.layer_block import layer_block as layer_block
from wellcond.linalg import Eigenvalues as Eigenvalues
from wellcond.linalg import Estimate as Estimate
from wellcond.linalg import SpectralDensity as SpectralDensity
from wellcond.linalg import eigenvalues as eigenvalues
from wellcond.linalg import spectral_density as spectral_density
from wellcond.normalization import LayerConditioning as LayerConditioning
from wellcond.normalization import layer_conditioning as layer_conditioning
from wellcond.preconditioners import Diagonal as Diagonal
from wellcond.preconditioners import Preconditioner as Preconditioner
from wellcond.preconditioners import preconditioner_of as preconditioner_of
from wellcond.problem import Problem as Problem
from wellcond.regularization import Regularization as Regularization
from wellcond.regularization import regularizations_of as regularizations_of
from wellcond.regularization import regularize as regularize
from wellcond.sharpness import CriticalSharpness as CriticalSharpness
from wellcond.sharpness import critical_sharpness as critical_sharpness
from wellcond.sparsity import Sparsity as Sparsity
from wellcond.sparsity import sparsity as sparsity
from wellcond.stability import EdgeRatio as EdgeRatio
from wellcond.stability import SuggestedLearningRate as SuggestedLearningRate
from wellcond.stability import edge_ratio as edge_ratio
from wellcond.stability import suggest_learning_rate as suggest_learning_rate

__version__ = "0.1.0"
