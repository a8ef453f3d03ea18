"""Five of torch's optimizers with a penalty inside the step: one pass over memory."""

from wellcond.steps import SGD as SGD
from wellcond.steps import Adagrad as Adagrad
from wellcond.steps import Adam as Adam
from wellcond.steps import AdamW as AdamW
from wellcond.steps import RMSprop as RMSprop
