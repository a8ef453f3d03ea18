"""The optimizers of torch.optim, one description each (theory, sections 2.3, 3.1 and 4.7), a file for each family.

A description says how P is read off the state, what the step does beside scaling by P, and, where it is a `Rule`, how
to take it: `preconditioner_of`, the penalties, `wellcond.optim` and steps in z all go by it. To add one, write a file
with a class under `reads` and import it here.
"""

from wellcond.preconditioners.readings import adadelta as adadelta
from wellcond.preconditioners.readings import adagrad as adagrad
from wellcond.preconditioners.readings import adam as adam
from wellcond.preconditioners.readings import rmsprop as rmsprop
from wellcond.preconditioners.readings import sgd as sgd
