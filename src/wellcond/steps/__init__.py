"""What happens in an optimizer's step: a penalty, or a change of variables (theory, sections 4 and 5.4).

`regularize`, `precondition` and `reparameterize` each put one `Attached` on the optimizer (`hooks.Attachment`), which
calls all of them around each step, in an order that does not depend on who was attached first:

1. `add_to_gradient`, when the gradients are there. `Reparameterize` comes first, since all the rest is in z: it gives
   the optimizer Pᵀg, and parameters that hold z (`Coordinates`). Then gradient penalties in original space
   (`Application`); then `Precondition`, so that PPᵀ is of their sum.
2. `before_step`: what moves p before the step, the decay of L2 in AdamW's order.
3. The optimizer's own step. With a closure, 1 and 2 come inside it, after each evaluation, which is at p (`surface`).
4. `after_step`, when the P of this step is there: proximal steps (`ProximalStep`), constraints last.
5. `leave`, the last first: gradients are given back, and p moves to where z has gone.

A step that raises is undone by `abandon`, at once or before the next one. Two kinds of step are not the optimizer's
own, but by the same description of it (`preconditioners.readings`) with more inside, in one pass over memory
(`step_by_rule`): those of `wellcond.optim` with a penalty (`PenaltyInside`), taken in 3; and compiled ones through a
diagonal P (`ThroughP`), for which the optimizer is shown no gradients in 1, and which are taken in 5.
"""

from wellcond.steps.change_of_variables import GivenP as GivenP
from wellcond.steps.penalized_optimizers import SGD as SGD
from wellcond.steps.penalized_optimizers import Adagrad as Adagrad
from wellcond.steps.penalized_optimizers import Adam as Adam
from wellcond.steps.penalized_optimizers import AdamW as AdamW
from wellcond.steps.penalized_optimizers import RMSprop as RMSprop
from wellcond.steps.regularization import Regularization as Regularization
from wellcond.steps.regularize import regularizations_of as regularizations_of
from wellcond.steps.regularize import regularize as regularize
from wellcond.steps.reparameterize import Preconditioning as Preconditioning
from wellcond.steps.reparameterize import Reparameterization as Reparameterization
from wellcond.steps.reparameterize import precondition as precondition
from wellcond.steps.reparameterize import reparameterize as reparameterize
