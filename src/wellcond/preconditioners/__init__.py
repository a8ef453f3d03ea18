"""Changes of variables p = Pz, and reading P off an optimizer."""

import wellcond.preconditioners.readings  # noqa: F401  (registers them)
from wellcond.preconditioners.batch_norm import BatchNormPreconditioner as BatchNormPreconditioner
from wellcond.preconditioners.live_optimizers import Step as Step
from wellcond.preconditioners.live_optimizers import own_preconditioner_of as own_preconditioner_of
from wellcond.preconditioners.live_optimizers import preconditioner_of as preconditioner_of
from wellcond.preconditioners.live_optimizers import reading_of as reading_of
from wellcond.preconditioners.live_optimizers import state_of as state_of
from wellcond.preconditioners.live_optimizers import steps_of as steps_of
from wellcond.preconditioners.live_optimizers import with_given as with_given
from wellcond.preconditioners.momentum import Momentum as Momentum
from wellcond.preconditioners.optimizer_copy import clone as clone
from wellcond.preconditioners.optimizer_copy import next_step as next_step
from wellcond.preconditioners.preconditioner import DiagonalPreconditioner as DiagonalPreconditioner
from wellcond.preconditioners.preconditioner import NotPreconditionedError as NotPreconditionedError
from wellcond.preconditioners.preconditioner import Preconditioner as Preconditioner
from wellcond.preconditioners.reading import NotReadableError as NotReadableError
from wellcond.preconditioners.reading import Reading as Reading
from wellcond.preconditioners.reading import known_reading as known_reading
from wellcond.preconditioners.reading import reading_for as reading_for
from wellcond.preconditioners.reading import reads as reads
from wellcond.preconditioners.reading import step_number as step_number
from wellcond.preconditioners.reading import step_numbers as step_numbers
from wellcond.preconditioners.reading import unwrapped_optimizer as unwrapped_optimizer
from wellcond.preconditioners.rule import Rule as Rule
from wellcond.preconditioners.standardization import Block as Block
from wellcond.preconditioners.standardization import Standardization as Standardization
