"""Penalties attached to any optimizer."""

from wellcond.regularization.regularization import Regularization as Regularization
from wellcond.regularization.regularize import regularizations_of as regularizations_of
from wellcond.regularization.regularize import regularize as regularize
