"""What a normalization would do to a network's conditioning and training, before anything is changed."""

from wellcond.what_if.result import Variant as Variant
from wellcond.what_if.result import WhatIf as WhatIf
from wellcond.what_if.what_if import what_if as what_if
