"""Five of torch's optimizers with a penalty inside the step: one pass over memory."""

from wellcond.optim.optimizers import SGD as SGD
from wellcond.optim.optimizers import Adagrad as Adagrad
from wellcond.optim.optimizers import Adam as Adam
from wellcond.optim.optimizers import AdamW as AdamW
from wellcond.optim.optimizers import RMSprop as RMSprop
