"""What normalization does to the conditioning of a layer."""

from wellcond.normalization.layers import LayerConditioning as LayerConditioning
from wellcond.normalization.layers import layer_conditioning as layer_conditioning
from wellcond.normalization.standardize import Standardize as Standardize
from wellcond.normalization.standardize import standardize as standardize
