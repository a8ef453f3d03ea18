"""Training on copies of a run: changed networks, new weights, the search for a learning rate."""

from wellcond.trials.changes import CHANGES as CHANGES
from wellcond.trials.changes import changes_of as changes_of
from wellcond.trials.networks import Network as Network
from wellcond.trials.new_weights import renew as renew
from wellcond.trials.one_step import loss_of as loss_of
from wellcond.trials.trials import Effect as Effect
from wellcond.trials.trials import Trials as Trials
