"""Is the run at a point of strong negative curvature? (theory, section 2.2)."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from wellcond.curvature import Hessian
from wellcond.examination.finding import Finding, Measurements, Severity, Subject
from wellcond.examination.remedies import examined_code
from wellcond.linalg import eigenvalues
from wellcond.problem import LossNotFiniteError, TrainingRun
from wellcond.trials import Effect, NoEffect

STRONG = 0.5
"""From half of λ_max on, a step as large as stability allows leaves along the negative direction about as fast as it
converges along the steepest one: the point is a saddle and not the wall of a valley."""

PRODUCTS = 20
"""For a direction of negative curvature; the most negative one to some percent is as good as itself."""

HALVINGS = 9
"""Distances that are tried along it, both ways: from ‖p‖, or 1, down by halves."""


def find(m: Measurements, subject: Subject) -> Finding | None:
    """The most negative eigenvalue of the curvature that the optimizer sees, against the largest."""
    figures = m.of("hessian")
    if figures is None:
        return None
    low, high = figures.smallest, figures.largest
    matrix = "PᵀHP" if m.preconditioned else "the Hessian"
    evidence = {"smallest": low, "largest": high, "negative_fraction": figures.negative_fraction}
    ends = f"the smallest eigenvalue of {matrix} is {low}, the largest {high}."
    remedy, effect = "", None
    if low.value == high.value == 0:
        title, severity = "There is no curvature: the Hessian is zero.", Severity.NOTICE
        text = (
            "The loss is linear in every parameter here, as behind dead units or a loss without curvature. Find what "
            "makes it so: no trial can."
        )
    elif high.value <= 0 or -low.value > STRONG * high.value:
        title = f"Strong negative curvature: {ends}"
        text = (
            "The point is a saddle, or above one. Descent leaves along the negative directions, and condition numbers, "
            "which look at the positive ones, say little until it has."
        )
        effect, remedy = _tried(subject), _code(subject)
        severity = Severity.NOTICE.after(effect)
        if effect and not effect.saves():
            remedy = ""
            text += " In a trial a jump along the most negative one saves little, or costs: nothing is to be done."
    elif low.low > 0:
        title, severity = f"There is no negative curvature: {ends}", Severity.GOOD
        text = "The loss curves upwards in every direction here."
    else:
        title, severity = f"Negative curvature is not dominant: {ends}", Severity.GOOD
        text = "There are directions along which the loss curves downwards, but weakly beside the steepest one."
    return Finding("negative_curvature", severity, title, text, evidence, remedy, effect)


def _tried(subject: Subject) -> Effect | NoEffect:
    """A jump along the direction of the most negative curvature, to where the loss is lowest, and training on."""
    problem, trials = subject.problem, subject.trials
    products = min(PRODUCTS, problem.size)
    # A product of the Hessian takes some three gradients, a loss a third of one.
    refused = trials.refused(3 * products + HALVINGS)
    if refused is not None:
        return refused
    try:
        v = eigenvalues(
            Hessian(problem), which="smallest", verify=False, max_products=products, seed=problem.seed
        ).vectors[:, 0]
        start = parameters_to_vector(problem.parameters).detach()

        def loss_at(t: float) -> float:
            with problem.moved(t * v):
                return problem.loss()

        size = max(1.0, float(start.norm()))
        t = min((sign * size / 2**k for sign in (-1, 1) for k in range(HALVINGS)), key=loss_at)
    except (FloatingPointError, LossNotFiniteError):  # too far
        return NoEffect()
    return trials.effect(partial(_move, names=problem.names, to=start + t * v.to(start)))


def _move(run: TrainingRun, names: list[str], to: Tensor) -> None:
    parameters = dict(run.model.named_parameters())
    vector_to_parameters(to, [parameters[name] for name in names])


def _code(subject: Subject) -> str:
    return (
        f"problem = wc.Problem({examined_code(subject.run)})\n"
        "H = wc.Hessian(problem)\n"
        f'v = wc.eigenvalues(H, which="smallest", verify=False, max_products={PRODUCTS}).vectors[:, 0]\n'
        "start = nn.utils.parameters_to_vector(problem.parameters).detach().clone()\n"
        "def loss_at(t):\n"
        "    nn.utils.vector_to_parameters(start + t * v.to(start), problem.parameters)\n"
        "    return problem.loss()\n"
        "size = max(1.0, float(start.norm()))\n"
        f"loss_at(min((s * size / 2**k for s in (-1, 1) for k in range({HALVINGS})), key=loss_at))   # leaves it there"
    )
