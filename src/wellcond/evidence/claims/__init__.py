"""The claims of the theory, in its order. A new one is a file here and a line below."""

from collections.abc import Sequence

from wellcond.evidence.claim import Claim
from wellcond.evidence.claims.rate import Rate

CLAIMS: Sequence[Claim] = (Rate(),)
