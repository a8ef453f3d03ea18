"""Symmetric operators by their products with vectors, and what such products prove. Knows no networks."""

from wellcond.linalg.deflation import DeflatedTails as DeflatedTails
from wellcond.linalg.deflation import Isolated as Isolated
from wellcond.linalg.density import SpectralDensity as SpectralDensity
from wellcond.linalg.density import spectral_density as spectral_density
from wellcond.linalg.eigenvalues import Eigenvalues as Eigenvalues
from wellcond.linalg.eigenvalues import eigenvalues as eigenvalues
from wellcond.linalg.estimate import CONFIDENCE as CONFIDENCE
from wellcond.linalg.estimate import Estimate as Estimate
from wellcond.linalg.estimate import number as number
from wellcond.linalg.lanczos import Lanczos as Lanczos
from wellcond.linalg.operator import DENSE_LIMIT as DENSE_LIMIT
from wellcond.linalg.operator import MatrixOperator as MatrixOperator
from wellcond.linalg.operator import SymmetricOperator as SymmetricOperator
from wellcond.linalg.quadrature import GradientQuadrature as GradientQuadrature
from wellcond.linalg.quadrature import Probe as Probe
from wellcond.linalg.quadrature import Quadrature as Quadrature
from wellcond.linalg.quadrature import SpectralTails as SpectralTails
from wellcond.linalg.quadrature import probe as probe
from wellcond.linalg.quadrature import trace as trace
from wellcond.linalg.randomized import DiagonalEstimate as DiagonalEstimate
from wellcond.linalg.spectrum import Effort as Effort
from wellcond.linalg.spectrum import SampledSpectrum as SampledSpectrum
from wellcond.linalg.spectrum import WholeSpectrum as WholeSpectrum
from wellcond.linalg.vectors import RandomDirections as RandomDirections
from wellcond.linalg.vectors import inner as inner
from wellcond.linalg.vectors import norm as norm
