"""How good is the curvature along an optimizer's next step that about ten forward passes give?

Three small networks at two points of training, under SGD with momentum and Adam, in float32 and float64. The truth is
dᵀHd by a product with the Hessian in float64; the critical learning rate is held against the loss at both ends of its
interval. Prints the table of docs/stability.md.

    python benchmarks/critical_sharpness.py [--quick]
"""

import copy
import statistics

import torch

import wellcond as wc
from forecast_order import POINTS, breast_cancer, diabetes, digits
from tables import Table, arguments
from wellcond.preconditioners import next_step

KINDS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}


def twin_in(dtype, model, optimizer, kind):
    """The model and the optimizer in another precision."""
    model = copy.deepcopy(model).to(dtype)
    twin = KINDS[kind](model.parameters())
    twin.load_state_dict(optimizer.state_dict())
    return model, twin


def main() -> None:
    seeds = 2 if arguments(__doc__, quick="two seeds instead of ten").parse_args().quick else 10
    torch.set_num_threads(1)
    headings = "curvature in its interval", "error, median", "half width, median", "η_c in its", "passes"
    table = Table("network", "dtype", *headings)
    for build in (digits, breast_cancer, diabetes):
        rows = {torch.float64: [], torch.float32: []}
        for seed in range(seeds):
            for kind in KINDS:
                torch.manual_seed(seed)
                model, loss_fn, X, y = build()
                model = model.double()
                optimizer = KINDS[kind](model.parameters())
                for step in range(1, max(POINTS.values()) + 1):
                    chosen = torch.randperm(len(X))[:128]
                    optimizer.zero_grad()
                    loss_fn(model(X[chosen]), y[chosen]).backward()
                    optimizer.step()
                    if step not in POINTS.values():
                        continue
                    problem = wc.Problem(model, loss_fn, (X, y))
                    d, _ = next_step(problem, optimizer, problem.gradient())
                    truth = float(d @ (wc.Hessian(problem) @ d) / (d @ d))
                    start = problem.loss()
                    for dtype, row in rows.items():
                        m, o = twin_in(dtype, model, optimizer, kind)
                        target = y.to(dtype) if y.is_floating_point() else y
                        row.append(measured(wc.Problem(m, loss_fn, (X.to(dtype), target)), o, problem, d, truth, start))
        for dtype, row in rows.items():
            inside, errors, halves, crossings, passes = zip(*row, strict=True)
            crossed = [c for c in crossings if c is not None]
            table.add(
                build.__name__.replace("_", " "),
                str(dtype)[6:],
                f"{sum(inside)} of {len(inside)}",
                f"{statistics.median(errors):.0e}",
                f"{statistics.median(halves):.0e}",
                f"{sum(crossed)} of {len(crossed)}",
                f"{statistics.mean(passes):.1f}",
            )
    print(table.markdown())


def measured(problem, optimizer, exact, d, truth, start):
    """(curvature inside, its error, half width, η_c inside, passes); None for η_c where the step does not descend."""
    found = wc.critical_sharpness(problem, optimizer)
    c = found.curvature
    crossed = None
    if found.critical_learning_rate.defined:
        losses = []
        for rate in (found.critical_learning_rate.low, found.critical_learning_rate.high):
            with exact.moved(min(rate / found.learning_rate, 1e6) * d):
                losses.append(exact.loss())
        slack = 1e-7 * abs(start) * (problem.dtype == torch.float32)
        crossed = losses[0] <= start + slack and start <= losses[1] + slack
    return truth in c, abs(c.value / truth - 1), (c.high - c.low) / 2 / abs(truth), crossed, found.forward_passes


if __name__ == "__main__":
    main()
