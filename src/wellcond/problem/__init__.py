"""The one place that knows modules, batches, modes, buffers and random state."""

from wellcond.problem.batches import count_examples as count_examples
from wellcond.problem.batches import each_batch as each_batch
from wellcond.problem.batches import move as move
from wellcond.problem.failures import Failures as Failures
from wellcond.problem.failures import first_line as first_line
from wellcond.problem.failures import raised_by_us as raised_by_us
from wellcond.problem.isolation import Isolation as Isolation
from wellcond.problem.isolation import random_state as random_state
from wellcond.problem.kept import graph_nodes as graph_nodes
from wellcond.problem.memory import free as free
from wellcond.problem.memory import halved as halved
from wellcond.problem.memory import out_of_memory as out_of_memory
from wellcond.problem.parameter_kinds import biases as biases
from wellcond.problem.parameter_kinds import embeddings as embeddings
from wellcond.problem.parameter_kinds import normalizations as normalizations
from wellcond.problem.parameters import optimized_parameters as optimized_parameters
from wellcond.problem.parameters import unwrapped as unwrapped
from wellcond.problem.problem import LossNotFiniteError as LossNotFiniteError
from wellcond.problem.problem import Problem as Problem
from wellcond.problem.problem import check_problem as check_problem
from wellcond.problem.reachable import generators_of as generators_of
from wellcond.problem.reachable import modules_of as modules_of
from wellcond.problem.reachable import states_kept as states_kept
from wellcond.problem.sampling import draw_batches as draw_batches
from wellcond.problem.training_run import TrainingRun as TrainingRun
