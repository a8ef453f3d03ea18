"""What normalization does to the conditioning of a layer."""

from wellcond.normalization.batch_norm import BatchNormPreconditioner as BatchNormPreconditioner
from wellcond.normalization.centering import LayerNormalization as LayerNormalization
from wellcond.normalization.layers import LayerConditioning as LayerConditioning
from wellcond.normalization.layers import NoLayersError as NoLayersError
from wellcond.normalization.layers import layer_conditioning as layer_conditioning
from wellcond.normalization.standardize import Standardize as Standardize
from wellcond.normalization.standardize import standardize as standardize
