"""How well conditioned a curvature is: the figures of theory section 2.2, each with its interval and its origin.

`conditioning` makes them from all eigenvalues (whole.py) where that is affordable, else from samples of the spectrum
(sampled.py), and adds κ_eff, which needs the gradient (effective.py).
"""

from wellcond.condition_numbers.conditioning import conditioning as conditioning
from wellcond.condition_numbers.figures import SYMBOLS as SYMBOLS
from wellcond.condition_numbers.figures import Conditioning as Conditioning
from wellcond.condition_numbers.figures import shown as shown
from wellcond.condition_numbers.sampled import Effort as Effort
from wellcond.linalg import DENSE_LIMIT as DENSE_LIMIT
