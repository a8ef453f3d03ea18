"""A given preconditioner with any optimizer."""

from wellcond.reparameterization.reparameterize import Preconditioning as Preconditioning
from wellcond.reparameterization.reparameterize import Reparameterization as Reparameterization
from wellcond.reparameterization.reparameterize import precondition as precondition
from wellcond.reparameterization.reparameterize import reparameterize as reparameterize
