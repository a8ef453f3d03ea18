"""The claims of the theory, in its order. A new one is a file here and a line below."""

from collections.abc import Sequence

from wellcond.evidence.claim import Claim
from wellcond.evidence.claims.adamw import AdamWIsIntrinsic
from wellcond.evidence.claims.best_diagonal import BestDiagonal
from wellcond.evidence.claims.block_bound import BlockBound
from wellcond.evidence.claims.bnp import BNP
from wellcond.evidence.claims.change_of_variables import ChangeOfVariables
from wellcond.evidence.claims.conditioning import Conditioning
from wellcond.evidence.claims.edge import Edge
from wellcond.evidence.claims.forecast import Forecast
from wellcond.evidence.claims.l2_generalization import L2Generalization
from wellcond.evidence.claims.l2_spectrum import L2Spectrum
from wellcond.evidence.claims.normalization import Normalization
from wellcond.evidence.claims.rate import Rate
from wellcond.evidence.claims.rest_point import RestPoint
from wellcond.evidence.claims.row_norms import RowNorms
from wellcond.evidence.claims.sparsity import SparsityOfL1
from wellcond.evidence.claims.weighted_lasso import WeightedLasso

CLAIMS: Sequence[Claim] = (
    Rate(),
    ChangeOfVariables(),
    RowNorms(),
    Conditioning(),
    BestDiagonal(),
    AdamWIsIntrinsic(),
    L2Spectrum(),
    L2Generalization(),
    WeightedLasso(),
    SparsityOfL1(),
    RestPoint(),
    Normalization(),
    BlockBound(),
    BNP(),
    Edge(),
    Forecast(),
)
