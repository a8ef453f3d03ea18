"""How large a learning rate may be, and the curvature along the next step (theory, section 2.3)."""

from wellcond.stability.critical_sharpness import CriticalSharpness as CriticalSharpness
from wellcond.stability.critical_sharpness import critical_sharpness as critical_sharpness
from wellcond.stability.edge import TARGET as TARGET
from wellcond.stability.edge import EdgeRatio as EdgeRatio
from wellcond.stability.edge import SuggestedLearningRate as SuggestedLearningRate
from wellcond.stability.edge import edge_ratio as edge_ratio
from wellcond.stability.edge import suggest_learning_rate as suggest_learning_rate
from wellcond.stability.edge import takes_products as takes_products
