"""Which preconditioner, learning rate or momentum would win, before training with it (theory, section 6)."""

from wellcond.forecasts.candidate import Candidate as Candidate
from wellcond.forecasts.candidate import as_it_is as as_it_is
from wellcond.forecasts.curve import Curve as Curve
from wellcond.forecasts.curve import Forecast as Forecast
from wellcond.forecasts.forecast import forecast as forecast
