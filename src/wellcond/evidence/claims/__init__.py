"""The claims of the theory, in its order. A new one is a file here and a line below."""

from collections.abc import Sequence

from wellcond.evidence.claim import Claim
from wellcond.evidence.claims.best_diagonal import BestDiagonal
from wellcond.evidence.claims.change_of_variables import ChangeOfVariables
from wellcond.evidence.claims.conditioning import Conditioning
from wellcond.evidence.claims.rate import Rate
from wellcond.evidence.claims.row_norms import RowNorms

CLAIMS: Sequence[Claim] = (Rate(), ChangeOfVariables(), RowNorms(), Conditioning(), BestDiagonal())
