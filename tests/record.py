"""Twelve results and some refusals of one commit, which tests/test_record.py holds later commits against.

A refactoring must not change what a run is told. Each entry of `RUNS` builds one small run from fixed seeds and gives
its result as JSON: an examination, a what-if or the records of a monitor. `REFUSALS` are calls that are refused.
`python -m tests.record` writes all of them to tests/data/before; run it only where results are meant to change, and say
in the commit which did and why.

What depends on the clock, on the day or on the installed versions is left out (`LEFT_OUT`). Monitors run without a
budget (`overhead=None`), so that what they measure does not depend on the clock either. Only the public interface is
used here, so that modules can be moved.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc
from tests.runs import Convolution, Residual, Transformer, data, mlp, train, trained
from wellcond.preconditioners.reading import supported

FOLDER = Path(__file__).parent / "data" / "before"

LEFT_OUT = {"versions", "seconds", "gradient_seconds", "cost", "share", "schema"}
"""Keys of what changes from run to run (times, the share of a monitor), or with the installed version."""

DIGITS = 13
"""Significant digits that are written: enough for a comparison to 1e-10."""


# -- what the runs are made of -----------------------------------------------------------------------------------------


def _double(name: str, most: int, *, standardized: bool = True) -> tuple[Tensor, Tensor, nn.Module]:
    """The data in float64, and standardized there: of sums in float32 another order would change the eighth digit."""
    X, y, loss_fn = data(name, standardized=False, most=most)
    X = X.double()
    if standardized:
        spread = X.std(0)
        X = (X - X.mean(0)) / torch.where(spread > 0, spread, 1.0)
    return X, y.bfloat16().double() if y.is_floating_point() else y, loss_fn


def _generated(examples: int, inputs: int, classes: int, *, spread: float = 1.0) -> tuple[Tensor, Tensor, nn.Module]:
    """Classes around random centers, in float64; `spread` is the ratio of the features' largest scale to the least."""
    generator = torch.Generator().manual_seed(7)
    centers = torch.randn(classes, inputs, generator=generator, dtype=torch.float64)
    y = torch.arange(examples) % classes
    X = centers[y] + torch.randn(examples, inputs, generator=generator, dtype=torch.float64)
    return X * torch.logspace(0, math.log10(spread), inputs, dtype=torch.float64), y, nn.CrossEntropyLoss()


def _rounded(run: wc.TrainingRun) -> wc.TrainingRun:
    """The run with weights and optimizer state of eight bits: another order of summation changes the last bits of what
    training comes to, and what is examined should not depend on them."""
    tensors = [*run.model.parameters(), *(x for state in run.optimizer.state.values() for x in state.values())]
    with torch.no_grad():
        for x in tensors:
            if isinstance(x, Tensor) and x.ndim:
                x.copy_(x.bfloat16())
    return run


def _examined(run: wc.TrainingRun, **options: Any) -> Any:
    run = _rounded(run)
    return wc.examine(run.model, run.loss_fn, run.data, run.optimizer, loss=run.loss, **options).to_json()


def _monitored(
    model: nn.Module,
    given: tuple[Tensor, Tensor, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    every: int,
    batch_size: int = 40,
    at_step: Callable[[int], object] = lambda step: None,
    handle: Any = None,
) -> Any:
    """The records of a run that is measured every so many steps, whole each time."""
    X, y, loss_fn = given
    with wc.Monitor(model, loss_fn, (X, y), optimizer, every=every, overhead=None, examples=128) as monitor:
        for step in range(steps):
            at_step(step)
            rows = torch.arange(step * batch_size, (step + 1) * batch_size) % len(X)
            optimizer.zero_grad()
            loss = loss_fn(model(X[rows]), y[rows])
            loss.backward()
            optimizer.step()
            monitor.observe(loss)
    run = {key: value for key, value in monitor.history.run.items() if key not in ("started", "torch")}
    return {"run": run, "records": [record.to_json() for record in monitor.history]}


def _unfreezing(model: nn.Module, frozen: list[nn.Parameter], every: int) -> Callable[[int], None]:
    """Freezes these parameters; every so many steps, just before a measurement, the next one is trained again.

    A monitor begins each search for λ_max at the last eigenvector, mixed with a random direction whose seed is a hash
    of an inner product: one bit more or less is another direction, and another interval. When the set of trained
    parameters has changed it begins as at the first measurement, from the seed alone, and figures agree to rounding.
    """
    for p in frozen:
        p.requires_grad_(False)

    def at_step(step: int) -> None:
        if step and step % every == 0 and step // every <= len(frozen):
            frozen[step // every - 1].requires_grad_(True)

    return at_step


def _conditioning(c: wc.results.Conditioning | None) -> Any:
    """The figures but κ*: with batch norm the Hessian is singular, and rounding decides which eigenvalue is last."""
    if c is None:
        return None
    names = ("largest", "smallest", "kappa_mean", "kappa_effective", "outside_range", "negative_fraction")
    figures = {name: getattr(c, name).to_json() for name in names}
    return {**figures, "kappa_50": c.kappa(0.5).to_json(), "theta": c.theta, "products": c.products}


def _asked(run: wc.TrainingRun, changes: list[str], **options: Any) -> Any:
    """All that a what-if says. Of a curve every fifth loss: it follows a smooth recursion."""
    found = wc.what_if(wc.Problem(run.model, run.loss_fn, run.data), run.optimizer, changes, **options)
    variants = {}
    for name, v in found.variants.items():
        plain = {key: getattr(v, key) for key in ("start_loss", "learning_rate", "warm_up", "loss", "notes")}
        estimates = {key: getattr(v, key).to_json() for key in ("edge_ratio", "suggested_learning_rate", "predicted")}
        figures = {"conditioning": _conditioning(v.conditioning), "hessian": _conditioning(v.hessian)}
        curve = v.curve and {
            "losses": v.curve.losses.tolist()[::5],
            "edge_ratio": v.curve.edge_ratio,
            "trusted_steps": v.curve.trusted_steps,
            "negative_share": v.curve.negative_share,
        }
        variants[name] = {**plain, **estimates, **figures, "curve": curve}
    return {"variants": variants, "ranking": found.ranking, "better": found.better, "text": str(found)}


# -- examinations ------------------------------------------------------------------------------------------------------


def examine_raw_inputs() -> Any:
    """Wine as it comes, under Adam."""
    given = _double("wine", 120, standardized=False)
    return _examined(trained(mlp(13, 3, width=6).double(), given, lr=1e-3, epochs=4), quick=True)


def examine_healthy_residual() -> Any:
    """A residual network with layer norm on diabetes, under AdamW: not quick, small."""
    given = _double("diabetes", 100)
    adamw = partial(torch.optim.AdamW, weight_decay=0.01)
    return _examined(trained(Residual(10, 1, width=6).double(), given, optimizer=adamw, epochs=4))


def _with_l1(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets) + 1e-3 * sum(p.abs().sum() for p in model.parameters())


def examine_dead_units_and_l1() -> Any:
    """A convolution on generated data with dead units, L1 in the loss and L2 as weight decay, under Adagrad."""
    X, y, _ = _generated(120, 12, 3)
    model = Convolution(12, 3, channels=6).double()
    with torch.no_grad():
        model.conv1.bias[:3] = -50.0
    loader = DataLoader(TensorDataset(X, y), 40, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.02, weight_decay=0.01)
    return _examined(train(wc.TrainingRun(model, None, loader, optimizer, _with_l1), 4), quick=True)


def examine_rate_too_large() -> Any:
    """A transformer on breast cancer under SGD with momentum, whose rate is then a thousand times larger."""
    momentum = partial(torch.optim.SGD, momentum=0.9)
    given = _double("breast cancer", 100)
    run = trained(Transformer(30, 2).double(), given, optimizer=momentum, lr=0.01, epochs=4)
    run.optimizer.param_groups[0]["lr"] *= 1000
    return _examined(run, quick=True)


def _cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def examine_without_normalization() -> Any:
    """Four layers of sigmoids without normalization, under SGD with momentum: not quick, with trials from new weights.

    The loss is a callable, without Gauss-Newton: its κ_eff would be 10¹¹ here, of which rounding leaves five digits.
    """
    X, y, _ = _double("breast cancer", 100)
    model = mlp(30, 2, depth=4, width=6, act=nn.Sigmoid).double()
    loader = DataLoader(TensorDataset(X, y), 50, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return _examined(train(wc.TrainingRun(model, None, loader, optimizer, _cross_entropy), 4))


def examine_larger_than_dense() -> Any:
    """2,422 parameters on digits in float32: above the size up to which a spectrum is computed whole. 12 are unused."""
    model = mlp(64, 10, depth=1, width=32)
    model[1].auxiliary = nn.Linear(3, 3)
    return _examined(trained(model, data("digits", most=200), epochs=4), quick=True)


# -- what-ifs ----------------------------------------------------------------------------------------------------------


def what_if_raw_inputs() -> Any:
    """Normalizations of an MLP on generated data of uneven scales, under Adam."""
    X, y, loss_fn = _generated(100, 10, 3, spread=10.0)
    model = mlp(10, 3, depth=1, width=10, act=nn.Tanh).double()
    run = wc.TrainingRun(model, loss_fn, (X, y), torch.optim.Adam(model.parameters(), lr=1e-3))
    return _asked(run, ["standardize inputs", "batch norm", "layer norm"], warm_up=10, steps=20)


def what_if_preconditioner() -> Any:
    """Batch norm and its preconditioner, of an MLP on breast cancer under SGD."""
    X, y, loss_fn = _double("breast cancer", 100)
    model = mlp(30, 2, depth=2, width=6, act=nn.Tanh).double()
    run = wc.TrainingRun(model, loss_fn, (X, y), torch.optim.SGD(model.parameters(), lr=0.05))
    return _asked(run, ["batch norm", "BNP"], warm_up=10, steps=20)


def what_if_larger_than_dense() -> Any:
    """Normalizations of an MLP of 2,410 parameters on digits in float32, under SGD with momentum."""
    X, y, loss_fn = data("digits", most=100)
    model = mlp(64, 10, depth=1, width=32)
    run = wc.TrainingRun(model, loss_fn, (X, y), torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    return _asked(run, ["batch norm", "layer norm"], warm_up=10, steps=20)


# -- monitors ----------------------------------------------------------------------------------------------------------


def monitor_convolution() -> Any:
    """A convolution on digits under RMSprop."""
    model = Convolution(64, 10, channels=4).double()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    unfreeze = _unfreezing(model, [model.conv2.weight, model.conv2.bias, model.conv1.weight], every=10)
    return _monitored(model, _double("digits", 160), optimizer, steps=31, every=10, at_step=unfreeze)


def monitor_preconditioned() -> Any:
    """An MLP on generated data whose SGD is preconditioned as batch norm would, and whose rate jumps."""
    model = mlp(8, 3, depth=2, width=8).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    wc.precondition(optimizer, wc.BatchNormPreconditioner(model))
    unfreeze = _unfreezing(model, [model[0].bias, model[2].bias, model[4].bias], every=12)

    def jump(step: int) -> None:
        unfreeze(step)
        if step == 24:
            optimizer.param_groups[0]["lr"] = 0.5

    return _monitored(model, _generated(160, 8, 3, spread=30.0), optimizer, steps=37, every=12, at_step=jump)


def monitor_float32() -> Any:
    """An MLP on wine as it comes, in float32, under Adam with a penalty; measurements begin at the last eigenvector."""
    model = mlp(13, 3, depth=1, width=12)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    wc.regularize(optimizer, wc.penalties.L1(1e-3), model=model)
    return _monitored(model, data("wine", standardized=False, most=128), optimizer, steps=25, every=8)


FLOAT32 = {"examine_larger_than_dense", "what_if_larger_than_dense", "monitor_float32"}
"""Names of the runs that are measured in float32; the others are in float64."""

RUNS: dict[str, Callable[[], Any]] = {
    run.__name__: run
    for run in (
        examine_raw_inputs,
        examine_healthy_residual,
        examine_dead_units_and_l1,
        examine_rate_too_large,
        examine_without_normalization,
        examine_larger_than_dense,
        what_if_raw_inputs,
        what_if_preconditioner,
        what_if_larger_than_dense,
        monitor_convolution,
        monitor_preconditioned,
        monitor_float32,
    )
}


def result(name: str) -> Any:
    """The result of a run as it is written: with `LEFT_OUT` left out, and numbers of `DIGITS` digits."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        return as_written(RUNS[name]())
    finally:
        torch.set_rng_state(state)


def as_written(found: Any) -> Any:
    """Nested dictionaries and lists as JSON has them."""
    if isinstance(found, dict):
        return {str(key): as_written(value) for key, value in found.items() if key not in LEFT_OUT}
    if isinstance(found, list | tuple):
        return [as_written(value) for value in found]
    if isinstance(found, float):
        return float(f"{found:.{DIGITS}g}") if math.isfinite(found) else str(found)
    return found


# -- refusals ----------------------------------------------------------------------------------------------------------


def _regression(*, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(20, 3, generator=generator, dtype=dtype)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    return model, nn.MSELoss(), (X, X.sum(1, keepdim=True))


def _asked_of(model: nn.Module, change: str, **options: Any) -> Any:
    _, loss_fn, batch = _regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return wc.what_if(wc.Problem(model, loss_fn, batch), optimizer, change, **options)


def _watched(**options: Any) -> Any:
    model, loss_fn, batch = _regression()
    return wc.Monitor(model, loss_fn, batch, **{"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), **options})


def _moved_inside() -> None:
    problem = wc.Problem(*_regression())
    H = wc.Hessian(problem)
    v = torch.ones(problem.size, dtype=problem.dtype)
    with problem:
        H @ v
        with torch.no_grad():
            problem.parameters[0].add_(1.0)
        H @ v


def _other_parameters() -> Any:
    other, _, _ = _regression()
    return wc.edge_ratio(wc.Problem(*_regression()), torch.optim.SGD(other.parameters(), lr=0.1))


def _not_finite() -> Any:
    model, loss_fn, (X, y) = _regression()
    return wc.examine(model, loss_fn, (X, y / 0.0))


def _small() -> wc.Hessian:
    return wc.Hessian(wc.Problem(*_regression()))


REFUSALS: dict[str, Callable[[], Any]] = {
    "a model that is none": lambda: wc.examine("model", nn.MSELoss(), []),
    "a loss that is a class": lambda: wc.examine(_regression()[0], nn.MSELoss, _regression()[2]),
    "no loss": lambda: wc.examine(_regression()[0], None, _regression()[2]),
    "data that end": lambda: wc.examine(*_regression()[:2], (batch for batch in [_regression()[2]])),
    "no data": lambda: wc.examine(*_regression()[:2], []),
    "another curvature": lambda: wc.examine(*_regression(), curvature="fisher"),
    "another mode": lambda: wc.Problem(*_regression(), mode="training"),
    "a loss that is not finite": _not_finite,
    "a loss without the network": lambda: wc.examine(
        _regression()[0], None, _regression()[2], loss=lambda model, batch: batch[1].mean()
    ),
    "an optimizer before its first step": lambda: wc.preconditioner_of(torch.optim.Adam(_regression()[0].parameters())),
    "an optimizer that is no preconditioner": lambda: wc.preconditioner_of(
        torch.optim.LBFGS(_regression()[0].parameters())
    ),
    "an optimizer over another network": _other_parameters,
    "parameters that change inside a block": _moved_inside,
    "a vector of another length": lambda: _small() @ torch.ones(3, dtype=torch.float64),
    "a block that there is not": lambda: _small().block("7.*"),
    "no eigenvalues": lambda: wc.eigenvalues(_small(), k=0),
    "κ of no fraction": lambda: wc.conditioning(_small()).kappa(0.0),
    "a layer that there is not": lambda: wc.layer_block(wc.Problem(*_regression()), "7"),
    "a monitor of no steps": lambda: _watched(every=0),
    "a monitor with all of the time": lambda: _watched(overhead=1.5),
    "a monitor without an optimizer": lambda: _watched(optimizer=None),
    "a writer that writes nothing": lambda: _watched(writer=object()),
    "another change": lambda: _asked_of(_regression()[0], "group norm"),
    "a change without its place": lambda: _asked_of(nn.Linear(3, 1).double(), "batch norm"),
    "a warm-up of less than nothing": lambda: _asked_of(_regression()[0], "batch norm", warm_up=-1),
    "a penalty that rewards": lambda: wc.penalties.L1(-1.0),
    "another space": lambda: wc.regularize(
        torch.optim.SGD(_regression()[0].parameters(), lr=0.1), wc.penalties.L1(0.1), space="dual"
    ),
}


def refusals() -> dict[str, list[str]]:
    """Type and message of what each call raises."""
    return {name: refusal(name) for name in REFUSALS}


def refusal(name: str) -> list[str]:
    """Of one call."""
    try:
        REFUSALS[name]()
    except Exception as error:
        return [type(error).__name__, _without_registered_here(str(error))]
    return ["nothing", "is raised"]


def _without_registered_here(message: str) -> str:
    """Without the optimizers that other tests of this process have registered, in a list of those that can be read."""
    for name in supported():
        if not hasattr(torch.optim, name):
            message = re.sub(rf", {name}\b|\b{name}, ", "", message)
    return message


# -- the files ---------------------------------------------------------------------------------------------------------


def path(name: str) -> Path:
    """Of a run's file."""
    return FOLDER / f"{name}.json"


def read(name: str) -> Any:
    """What was written of a run."""
    return json.loads(path(name).read_text(encoding="utf-8"))


def write(name: str, found: Any) -> None:
    """A file of one line."""
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    path(name).write_text(text + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    """Write the files of these names, of all unless given."""
    torch.set_num_threads(1)  # as in the tests
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or [*RUNS, "refusals"]:
        write(name, refusals() if name == "refusals" else result(name))
        print(f"{name}: {path(name).stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
