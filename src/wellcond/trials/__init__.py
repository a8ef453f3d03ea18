"""Training on copies of a run: changed networks, new weights, the search for a learning rate."""

from wellcond.trials.copy_of_run import loss_of as loss_of
from wellcond.trials.effect import Effect as Effect
from wellcond.trials.effect import NoEffect as NoEffect
from wellcond.trials.network import Network as Network
from wellcond.trials.network_changes import CHANGES as CHANGES
from wellcond.trials.network_changes import changes_of as changes_of
from wellcond.trials.new_weights import renew as renew
from wellcond.trials.rate_search import Trained as Trained
from wellcond.trials.rate_search import Training as Training
from wellcond.trials.trials import Trials as Trials
