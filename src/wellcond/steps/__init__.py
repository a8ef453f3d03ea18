"""What happens in an optimizer's step: a penalty, or a change of variables (theory, sections 4 and 5.4)."""

from wellcond.steps.change_of_variables import GivenP as GivenP
from wellcond.steps.optimizers import SGD as SGD
from wellcond.steps.optimizers import Adagrad as Adagrad
from wellcond.steps.optimizers import Adam as Adam
from wellcond.steps.optimizers import AdamW as AdamW
from wellcond.steps.optimizers import RMSprop as RMSprop
from wellcond.steps.regularization import Regularization as Regularization
from wellcond.steps.regularize import regularizations_of as regularizations_of
from wellcond.steps.regularize import regularize as regularize
from wellcond.steps.reparameterize import Preconditioning as Preconditioning
from wellcond.steps.reparameterize import Reparameterization as Reparameterization
from wellcond.steps.reparameterize import precondition as precondition
from wellcond.steps.reparameterize import reparameterize as reparameterize
