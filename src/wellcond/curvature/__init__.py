"""Curvature of a problem as `linalg` operators."""

from wellcond.curvature.empirical_fisher import EmpiricalFisher as EmpiricalFisher
from wellcond.curvature.gauss_newton import GaussNewton as GaussNewton
from wellcond.curvature.hessian import Hessian as Hessian
from wellcond.curvature.of_output import OutputUnknownError as OutputUnknownError
from wellcond.curvature.operator import CurvatureOperator as CurvatureOperator
from wellcond.curvature.operator import Preconditioned as Preconditioned
from wellcond.curvature.scaling import jacobi as jacobi
from wellcond.curvature.scaling import row_scaling as row_scaling
