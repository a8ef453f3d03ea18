"""Changes of variables p = Pz, and reading P off an optimizer."""

from wellcond.preconditioners.optimizers import preconditioner_of as preconditioner_of
from wellcond.preconditioners.optimizers import reading_of as reading_of
from wellcond.preconditioners.optimizers import steps_of as steps_of
from wellcond.preconditioners.optimizers import supported as supported
from wellcond.preconditioners.preconditioner import Diagonal as Diagonal
from wellcond.preconditioners.preconditioner import Preconditioner as Preconditioner
