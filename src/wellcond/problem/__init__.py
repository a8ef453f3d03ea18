"""The one place that knows modules, batches, modes, buffers and random state."""

from wellcond.problem.drawn import draw_batches as draw_batches
from wellcond.problem.held import generators_of as generators_of
from wellcond.problem.held import states_kept as states_kept
from wellcond.problem.isolation import random_state as random_state
from wellcond.problem.kept import graph_nodes as graph_nodes
from wellcond.problem.parameters import optimized_parameters as optimized_parameters
from wellcond.problem.parameters import unwrapped as unwrapped
from wellcond.problem.problem import LossNotFiniteError as LossNotFiniteError
from wellcond.problem.problem import Problem as Problem
from wellcond.problem.problem import check_problem as check_problem
