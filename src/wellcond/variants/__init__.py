"""What a normalization would do to a network's conditioning and training, before anything is changed."""

from wellcond.variants.result import WhatIf as WhatIf
from wellcond.variants.what_if import what_if as what_if
