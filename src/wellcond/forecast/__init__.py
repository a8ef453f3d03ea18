"""Which preconditioner, learning rate or momentum would win, before training with it (theory, section 6)."""

from wellcond.forecast.candidate import Candidate as Candidate
from wellcond.forecast.candidate import as_it_is as as_it_is
from wellcond.forecast.curve import Curve as Curve
from wellcond.forecast.curve import Forecast as Forecast
from wellcond.forecast.forecast import forecast as forecast
