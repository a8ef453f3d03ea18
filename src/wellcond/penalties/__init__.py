"""Penalties R: values, gradients and proximal steps, as pure functions of tensors."""

from wellcond.penalties.constraints import Box as Box
from wellcond.penalties.constraints import NonNegative as NonNegative
from wellcond.penalties.groups import GroupL1 as GroupL1
from wellcond.penalties.groups import SparseGroupL1 as SparseGroupL1
from wellcond.penalties.nonconvex import MCP as MCP
from wellcond.penalties.nonconvex import SCAD as SCAD
from wellcond.penalties.nuclear import NuclearNorm as NuclearNorm
from wellcond.penalties.penalty import Penalty as Penalty
from wellcond.penalties.separable import L0 as L0
from wellcond.penalties.separable import L1 as L1
from wellcond.penalties.separable import L2 as L2
from wellcond.penalties.separable import ElasticNet as ElasticNet
from wellcond.penalties.separable import Power as Power
from wellcond.penalties.sparsity import Sparsity as Sparsity
from wellcond.penalties.sparsity import sparsity as sparsity
from wellcond.penalties.sparsity import sparsity_of as sparsity_of
