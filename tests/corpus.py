"""Forty training runs to judge findings by: five data sets, four architectures, 20 healthy, 20 with a fault.

The healthy ones are every data set with every architecture, trained as a careful person would. A faulty one is such a
run with one thing changed, which its finding must see; where it is changed before training, training goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc
from tests.runs import NETWORKS, data, followed, mlp, train

BATCH = 32
EXAMPLES = 320
"""Of each data set at most, shuffled."""

EPOCHS = {"digits": 15, "wine": 20, "breast cancer": 12, "diabetes": 15, "iris": 25}

Optimizer = Callable[[Any], torch.optim.Optimizer]

ADAM = partial(torch.optim.Adam, lr=3e-3)
ADAMW = partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.01)
MOMENTUM = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
RMSPROP = partial(torch.optim.RMSprop, lr=1e-3)
SGD = partial(torch.optim.SGD, lr=0.1)


@dataclass
class Recipe:
    """How a run is made; a fault changes one entry of a healthy one.

    Attributes:
        data: name of the data set.
        network: name of the architecture.
        optimizer: parameters → optimizer.
        inputs: (N, d) → (N, d), after standardization.
        standardized: whether the inputs are.
        model: the network before training → the one that is trained.
        parameters: network → what the optimizer gets.
        loss: (model, batch) → scalar, instead of the data set's own.
        batch: examples in a batch.
        epochs: of training; None for the data set's own.
        after: done to the finished run.
    """

    data: str
    network: str
    optimizer: Optimizer
    inputs: Callable[[Tensor], Tensor] = lambda x: x
    standardized: bool = True
    model: Callable[[nn.Module], nn.Module] = lambda model: model
    parameters: Callable[[nn.Module], Any] = lambda model: model.parameters()
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    batch: int = BATCH
    epochs: int | None = None
    after: Callable[[wc.TrainingRun], None] = lambda run: None


@dataclass
class Case:
    """A run of the corpus.

    Attributes:
        name: what it is.
        recipe: how it is made.
        faults: keys of the findings of which one must say at least “notice”; none for a healthy run.
    """

    name: str
    recipe: Recipe
    faults: tuple[str, ...] = ()

    def run(self) -> wc.TrainingRun:
        """Make the data and train; the same every time."""
        r = self.recipe
        torch.manual_seed(0)
        X, y, loss_fn = data(r.data, standardized=r.standardized, most=EXAMPLES)
        X = r.inputs(X)
        outputs = 1 if y.is_floating_point() else int(y.max()) + 1
        model = r.model(NETWORKS[r.network](X.shape[1], outputs))
        loader = DataLoader(TensorDataset(X, y), batch_size=r.batch, shuffle=True)
        run = wc.TrainingRun(model, None if r.loss else loss_fn, loader, r.optimizer(r.parameters(model)), r.loss)
        train(run, EPOCHS[r.data] if r.epochs is None else r.epochs)
        r.after(run)
        return run

    def judged(self) -> Judged:
        """Examine it, and run the code that is advised."""
        run = self.run()
        told = wc.examine(run.model, run.loss_fn, run.data, run.optimizer, loss=run.loss).findings
        said = [f for f in told if f.severity > wc.results.Severity.GOOD]
        lacking = [f"{f.key}: {what}" for f in said if (what := _lacking(f, run))]
        return Judged(self, {f.key: f.severity for f in said}, lacking)


@dataclass
class Judged:
    """What an examination says of a run, at least “notice”.

    Attributes:
        case: the run.
        said: severities by finding.
        lacking: what a finding has not that it should have: evidence, code that runs, an effect or why there is none.
    """

    case: Case
    said: dict[str, wc.results.Severity]
    lacking: list[str]

    @property
    def found(self) -> bool:
        """Whether the fault was seen."""
        return any(key in self.said for key in self.case.faults)


def judge(names: Iterable[str]) -> list[Judged]:
    """Examine runs of these names, in a process a core."""
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        judged = list(pool.map(_judged, names))
    return [Judged(BY_NAME[name], said, lacking) for name, said, lacking in judged]


def _judged(name: str) -> tuple[str, dict[str, wc.results.Severity], list[str]]:
    judged = BY_NAME[name].judged()  # without its recipe, whose functions don't travel
    return name, judged.said, judged.lacking


def _lacking(f: wc.results.Finding, run: wc.TrainingRun) -> str:
    if not f.evidence or not all(e.how for e in f.evidence.values()):
        return "evidence, and how it was got"
    if f.effect is None and not any(
        why in f.text for why in ("not tried", "nothing to try", "no trial", "can't be told")
    ):
        return "an effect, or why there is none"
    if f.remedy:
        try:
            followed(f.remedy, run)
        except Exception as error:
            return f"code that runs: {type(error).__name__} {error}"
    return ""


_HEALTHY = {
    "digits": {"MLP": ADAM, "convolution": ADAMW, "transformer": ADAMW, "residual": MOMENTUM},
    "wine": {"MLP": MOMENTUM, "convolution": ADAM, "transformer": ADAM, "residual": RMSPROP},
    "breast cancer": {"MLP": RMSPROP, "convolution": MOMENTUM, "transformer": ADAMW, "residual": ADAM},
    "diabetes": {"MLP": ADAMW, "convolution": ADAM, "transformer": ADAM, "residual": ADAMW},
    "iris": {"MLP": SGD, "convolution": ADAMW, "transformer": RMSPROP, "residual": ADAM},
}

HEALTHY = [
    Case(f"{network} on {data}", Recipe(data, network, optimizer))
    for data, networks in _HEALTHY.items()
    for network, optimizer in networks.items()
]


# The faults, as changes of a recipe's entries.


def _dead(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model[0].bias[:10] = -50.0
    return model


def _constant(model: nn.Module) -> nn.Module:
    """All weights of the hidden layers the same: their units stay copies of each other."""
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight.fill_(0.1)
            layer.bias.zero_()
        model[4].weight.mul_(torch.linspace(-1, 1, len(model[4].weight))[:, None])
    return model


class Shift(nn.Module):
    """Adds a constant to what passes."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 100.0


def _shifted_hidden(model: nn.Module) -> nn.Module:
    model[1] = nn.Sequential(nn.ReLU(), Shift())
    return model


def _left_over(model: nn.Module) -> nn.Module:
    model.auxiliary = nn.Linear(5, 5)
    return model


def _deep_sigmoids(model: nn.Module) -> nn.Module:
    """Six layers of sigmoids, whose means add up."""
    return mlp(model[0].in_features, model[4].out_features, depth=6, width=12, act=nn.Sigmoid)


def _one_layer_slower(model: nn.Module) -> list[dict[str, Any]]:
    rest = [p for name, p in model.named_parameters() if not name.startswith("conv2")]
    return [{"params": rest}, {"params": list(model.conv2.parameters()), "lr": 1e-6}]


def _with_l1(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets) + 1e-3 * sum(p.abs().sum() for p in model.parameters())


def _body_only(model: nn.Module) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if not name.startswith("readout")]


def _half(run: wc.TrainingRun) -> None:
    """The same in bfloat16, with a rate whose steps are lost in the rounding."""
    run.model.to(torch.bfloat16)
    X, y = run.data.dataset.tensors
    run.data = DataLoader(TensorDataset(X.bfloat16(), y), batch_size=BATCH, shuffle=True)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=1e-4, momentum=0.9)
    for inputs, targets in run.data:
        run.optimizer.zero_grad()
        run.loss_fn(run.model(inputs).float(), targets).backward()
        run.optimizer.step()
    run.loss_fn = lambda output, target: nn.functional.cross_entropy(output.float(), target)


def _rate(factor: float) -> Callable[[wc.TrainingRun], None]:
    def change(run: wc.TrainingRun) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] *= factor

    return change


FAULTY = [
    Case("inputs as they come, breast cancer", Recipe("breast cancer", "MLP", ADAM, standardized=False), ("inputs",)),
    Case("inputs as they come, wine", Recipe("wine", "residual", ADAM, standardized=False), ("inputs",)),
    Case("inputs off-center", Recipe("digits", "convolution", ADAM, inputs=lambda x: x + 100), ("inputs",)),
    Case("rate too large for SGD", Recipe("wine", "MLP", SGD, epochs=2, after=_rate(1000)), ("learning_rate",)),
    Case("rate too large for Adam", Recipe("iris", "transformer", ADAM, after=_rate(1000)), ("learning_rate",)),
    Case(
        "rate far too small",
        Recipe("iris", "MLP", partial(torch.optim.SGD, lr=1e-5, momentum=0.9)),
        ("learning_rate",),
    ),
    Case("no momentum", Recipe("digits", "MLP", partial(torch.optim.SGD, lr=0.05)), ("momentum",)),
    Case(
        "momentum too high",
        Recipe("wine", "MLP", partial(torch.optim.SGD, lr=1e-3, momentum=0.999), epochs=5),
        ("momentum",),
    ),
    Case(
        "ε of 0.1 in Adam", Recipe("diabetes", "transformer", partial(torch.optim.Adam, lr=3e-3, eps=0.1)), ("epsilon",)
    ),
    Case("ε of 1 in RMSprop", Recipe("digits", "MLP", partial(torch.optim.RMSprop, lr=1e-3, eps=1.0)), ("epsilon",)),
    Case(
        "weight decay in Adam",
        Recipe("breast cancer", "residual", partial(torch.optim.Adam, lr=3e-3, weight_decay=0.1)),
        ("weight_decay",),
    ),
    Case("L1 in the loss", Recipe("wine", "MLP", ADAM, loss=_with_l1), ("l1_in_loss",)),
    Case("dead units", Recipe("wine", "MLP", ADAM, model=_dead), ("dead_units",)),
    Case("weights that start the same", Recipe("iris", "MLP", ADAM, model=_constant), ("dead_units",)),
    Case("a hidden layer off-center", Recipe("digits", "MLP", ADAM, model=_shifted_hidden), ("layer_conditioning",)),
    Case(
        "deep, without normalization",
        Recipe("digits", "MLP", ADAM, model=_deep_sigmoids),
        ("normalization", "layer_conditioning"),
    ),
    Case("a module that nothing uses", Recipe("diabetes", "residual", ADAMW, model=_left_over), ("unreached",)),
    Case("the readout forgotten", Recipe("breast cancer", "transformer", ADAMW, parameters=_body_only), ("unreached",)),
    Case(
        "one layer far slower",
        Recipe("wine", "convolution", ADAM, parameters=_one_layer_slower, epochs=3),
        ("update_ratio",),
    ),
    Case("steps lost in bfloat16", Recipe("digits", "residual", MOMENTUM, after=_half), ("precision",)),
]

BY_NAME = {case.name: case for case in FAULTY + HEALTHY}
