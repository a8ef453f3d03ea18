"""Symmetric operators by their products with vectors, and what such products prove. Knows no networks.

An operator (operator.py) multiplies; all else asks it for products. One `Lanczos` run (lanczos.py) gives Ritz pairs,
and what it may have missed (missed.py): `eigenvalues` extends, restarts and locks it until its targets (targets.py) are
met. A run from a random direction is a quadrature of the spectrum (quadrature.py); deflation.py takes the eigenvalues
out that a run has isolated, samples the rest, and bounds how many lie above a threshold, of which `spectral_density`
makes a curve (measures.py). Traces and diagonals (randomized.py) need no Lanczos run.
"""

from wellcond.linalg.deflation import DeflatedTails as DeflatedTails
from wellcond.linalg.deflation import Isolated as Isolated
from wellcond.linalg.density import SpectralDensity as SpectralDensity
from wellcond.linalg.eigenvalues import Eigenvalues as Eigenvalues
from wellcond.linalg.eigenvalues import eigenvalues as eigenvalues
from wellcond.linalg.estimate import CONFIDENCE as CONFIDENCE
from wellcond.linalg.estimate import Estimate as Estimate
from wellcond.linalg.estimate import jackknife as jackknife
from wellcond.linalg.lanczos import Lanczos as Lanczos
from wellcond.linalg.operator import DENSE_LIMIT as DENSE_LIMIT
from wellcond.linalg.operator import MatrixOperator as MatrixOperator
from wellcond.linalg.operator import SymmetricOperator as SymmetricOperator
from wellcond.linalg.operator import check_operator as check_operator
from wellcond.linalg.quadrature import Quadrature as Quadrature
from wellcond.linalg.quadrature import deflated_trace as deflated_trace
from wellcond.linalg.sampled_density import spectral_density as spectral_density
from wellcond.linalg.vectors import RandomDirections as RandomDirections
from wellcond.linalg.vectors import finite as finite
from wellcond.linalg.vectors import inner as inner
from wellcond.linalg.vectors import norm as norm
