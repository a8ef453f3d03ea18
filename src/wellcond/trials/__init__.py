"""Training on copies of a run: changed networks, new weights, the search for a learning rate."""

from wellcond.trials.changes import CHANGES as CHANGES
from wellcond.trials.changes import changes_of as changes_of
from wellcond.trials.effect import Effect as Effect
from wellcond.trials.effect import NoEffect as NoEffect
from wellcond.trials.network import Network as Network
from wellcond.trials.new_weights import renew as renew
from wellcond.trials.plain_training import loss_of as loss_of
from wellcond.trials.training import Trained as Trained
from wellcond.trials.training import Training as Training
from wellcond.trials.trials import Trials as Trials
