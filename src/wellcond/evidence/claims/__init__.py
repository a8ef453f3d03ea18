"""The claims of the theory, in its order. A new one is a file here and a line below."""

from collections.abc import Sequence

from wellcond.evidence.claim import Claim
from wellcond.evidence.claims.block_bound import BlockBound
from wellcond.evidence.claims.bnp import BNP
from wellcond.evidence.claims.edge import Edge
from wellcond.evidence.claims.forecast import Forecast
from wellcond.evidence.claims.normalization import Normalization
from wellcond.evidence.claims.rate import Rate

CLAIMS: Sequence[Claim] = (
    Rate(),
    Normalization(),
    BlockBound(),
    BNP(),
    Edge(),
    Forecast(),
)
