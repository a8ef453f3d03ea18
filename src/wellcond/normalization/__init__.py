"""What normalization does to the conditioning of a layer."""

from wellcond.normalization.features import FeatureMoments as FeatureMoments
from wellcond.normalization.features import standardize as standardize
from wellcond.normalization.layer_block import layer_block as layer_block
from wellcond.normalization.layers import LayerConditioning as LayerConditioning
from wellcond.normalization.layers import NoLayersError as NoLayersError
from wellcond.normalization.layers import layer_conditioning as layer_conditioning
from wellcond.normalization.rows import CONVOLUTIONS as CONVOLUTIONS
from wellcond.normalization.rows import padding as padding
from wellcond.normalization.standardize import Standardize as Standardize
from wellcond.normalization.units import Units as Units
from wellcond.normalization.units import units_of as units_of
