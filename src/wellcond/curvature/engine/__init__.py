"""How a product is made: from what is kept, from a compiled program, or by evaluating the network again."""

from wellcond.curvature.engine.products import kept_matrix as kept_matrix
from wellcond.curvature.engine.products import multiply as multiply
from wellcond.curvature.engine.products import multiply_columns as multiply_columns
