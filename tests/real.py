"""Small networks of the kinds that people train, and losses that are not of (output, target)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_padded_sequence

import wellcond as wc


class Residual(nn.Module):
    """As torchvision's BasicBlock: batch norm, a strided shortcut, ReLUs and a sum in place."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += shortcut
        return self.relu(out)


class ResNet(nn.Module):
    """A stem, two stages, pooling."""

    def __init__(self, width: int, classes: int = 4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.layer1, self.layer2 = Residual(width, width, 1), Residual(width, 2 * width, 2)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class Language(nn.Module):
    """Two LSTM layers with dropout between, that guess the next token: logits (N, vocabulary, length)."""

    def __init__(self, width: int, vocabulary: int = 6, dropout: float = 0.2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=dropout, batch_first=True)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(tokens))[0]).transpose(1, 2)


class Sequences(nn.Module):
    """A bidirectional LSTM over packed sequences of several lengths."""

    def __init__(self, width: int, classes: int = 3):
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, width, bidirectional=True, batch_first=True), nn.Linear(2 * width, classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(packed)
        return self.out(torch.cat([h[0], h[1]], dim=1))


class MixerBlock(nn.Module):
    """Over tokens, then over channels."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).mT).mT
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """Patches of 4 × 4 pixels of an 8 × 8 image."""

    def __init__(self, width: int, classes: int = 4):
        super().__init__()
        self.stem, self.block = nn.Conv2d(1, width, 4, 4), MixerBlock(4, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.stem(x).flatten(2).mT)).mean(1))


def images(N: int = 16, batches: int = 2) -> list[tuple[Tensor, Tensor]]:
    """The digits 0 to 3."""
    from sklearn.datasets import load_digits

    X, y = load_digits(n_class=4, return_X_y=True)
    X, y = torch.tensor(X).float().view(-1, 1, 8, 8) / 16, torch.tensor(y)
    return [(X[i : i + N], y[i : i + N]) for i in range(0, N * batches, N)]


def sentences(N: int = 8, batches: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Tokens that follow one another in a cycle, with some noise; the target is the next one."""
    start, steps = torch.randint(6, (N * batches, 1)), torch.arange(7)
    tokens = (start + steps + (torch.rand(N * batches, 7) < 0.2).long()) % 6
    return [(t[:, :-1], t[:, 1:]) for t in tokens.split(N)]


def sequences(N: int = 12, batches: int = 2) -> list[dict[str, Tensor]]:
    """Of several lengths."""
    X, lengths = torch.randn(N * batches, 5, 3), torch.randint(1, 6, (N * batches,))
    y = (X[:, 0, 0] > 0).long() + (X[:, 0, 1] > 0).long()
    return [{"x": X[i : i + N], "lengths": lengths[i : i + N], "y": y[i : i + N]} for i in range(0, len(X), N)]


def of_sequences(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """A loss for dictionaries."""
    return nn.functional.cross_entropy(model(batch["x"], batch["lengths"]), batch["y"])


def taught(run: wc.TrainingRun, epochs: int = 6) -> wc.TrainingRun:
    """Plain training, whatever the loss."""
    run.model.train()
    for _ in range(epochs):
        for batch in run.data:
            run.optimizer.zero_grad()
            loss = run.loss(run.model, batch) if run.loss else run.loss_fn(run.model(batch[0]), batch[1])
            loss.backward()
            run.optimizer.step()
    return run


def _resnet(width: int) -> wc.TrainingRun:
    model = ResNet(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    return wc.TrainingRun(model, nn.CrossEntropyLoss(), images(), optimizer)


def _language(width: int, dropout: float = 0.2) -> wc.TrainingRun:
    model = Language(width, dropout=dropout)
    return wc.TrainingRun(model, nn.CrossEntropyLoss(), sentences(), torch.optim.Adam(model.parameters(), lr=1e-2))


def _sequences(width: int) -> wc.TrainingRun:
    model = Sequences(width)
    return wc.TrainingRun(model, None, sequences(), torch.optim.RMSprop(model.parameters(), lr=3e-3), loss=of_sequences)


def _mixer(width: int) -> wc.TrainingRun:
    model = Mixer(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
    return wc.TrainingRun(model, nn.CrossEntropyLoss(label_smoothing=0.1), images(), optimizer)


# name: (a network of some hundred parameters, one of more than 2,000, which is measured in float32 and in part)
MODELS: dict[str, tuple[Callable[[], wc.TrainingRun], Callable[[], wc.TrainingRun]]] = {
    "residual network": (lambda: _resnet(2), lambda: _resnet(6)),
    "LSTM language model": (lambda: _language(3, dropout=0.0), lambda: _language(12)),
    "LSTM over packed sequences": (lambda: _sequences(4), lambda: _sequences(15)),
    "MLP-mixer": (lambda: _mixer(5), lambda: _mixer(24)),
}


def mlp(*widths: int) -> nn.Sequential:
    """Tanh between layers."""
    layers = [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class TwoInputs(nn.Module):
    """Two inputs by name, a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, *, other: Tensor) -> dict[str, Tensor]:
        return {"logits": self.left(x) * self.right(other), "auxiliary": self.left(x).square().mean()}


class Variational(nn.Module):
    """Draws in its forward pass; three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + torch.randn_like(mean) * (log_variance / 2).exp()), mean, log_variance


def _regularized() -> tuple[nn.Module, Any, Any]:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        penalty = sum(p.square().sum() for p in model.parameters() if p.ndim > 1)
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) + 1e-2 * penalty

    return mlp(4, 5, 3), loss, [(torch.randn(12, 4), torch.randint(3, (12,))) for _ in range(2)]


def _contrastive() -> tuple[nn.Module, Any, Any]:
    """Two views of each example, and all the others of the batch against them."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        a, b = (nn.functional.normalize(model(view), dim=1) for view in batch)
        return nn.functional.cross_entropy(a @ b.T / 0.3, torch.arange(len(a)))

    X = torch.randn(2, 10, 4)
    return mlp(4, 5, 3), loss, [(x, x + 0.1 * torch.randn_like(x)) for x in X]


def _q_learning() -> tuple[nn.Module, Any, Any]:
    """Against a frozen copy of the network."""
    model = mlp(4, 6, 2)
    target = copy.deepcopy(model).requires_grad_(False)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            goal = batch["reward"] + 0.9 * target(batch["next"]).max(1).values
        return nn.functional.smooth_l1_loss(model(batch["state"]).gather(1, batch["action"][:, None])[:, 0], goal)

    N = 20
    batch = {"state": torch.randn(N, 4), "next": torch.randn(N, 4), "action": torch.randint(2, (N,))}
    return model, loss, [batch | {"reward": torch.randn(N)}]


def _generator() -> tuple[nn.Module, Any, Any]:
    """Against a frozen discriminator."""
    discriminator = mlp(4, 6, 1).requires_grad_(False)

    def loss(model: nn.Module, noise: Tensor) -> Tensor:
        return nn.functional.softplus(-discriminator(model(noise))).mean()

    return mlp(3, 6, 4), loss, [torch.randn(12, 3) for _ in range(2)]


def _two_inputs() -> tuple[nn.Module, Any, Any]:
    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        out = model(batch[0], other=batch[1])
        return nn.functional.cross_entropy(out["logits"], batch[2]) + 0.1 * out["auxiliary"]

    return TwoInputs(), loss, [(torch.randn(14, 4), torch.randn(14, 4), torch.randint(3, (14,)))]


def _variational() -> tuple[nn.Module, Any, Any]:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        again, mean, log_variance = model(x)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
        return ((again - x).square().sum(1) + divergence).mean()

    return Variational(), loss, [torch.randn(16, 4)]


LOSSES: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "regularizer in the loss": _regularized,
    "contrastive": _contrastive,
    "frozen target network": _q_learning,
    "generator against a discriminator": _generator,
    "several inputs and outputs": _two_inputs,
    "draws in the forward pass": _variational,
}


def with_loss(name: str) -> wc.TrainingRun:
    """A run with one of the losses, trained for a little."""
    torch.manual_seed(0)
    model, loss, data = LOSSES[name]()
    return taught(wc.TrainingRun(model, None, data, torch.optim.Adam(model.parameters(), lr=1e-2), loss=loss))


def dense_hessian(run: wc.TrainingRun, dtype: torch.dtype = torch.float64) -> Tensor:
    """By torch's own second derivative on a copy, row by row; without dropout."""
    model = copy.deepcopy(run.model).to(dtype)
    for cell in getattr(run.loss, "__closure__", None) or ():  # networks beside the model follow the dtype
        if isinstance(cell.cell_contents, nn.Module):
            cell.cell_contents.to(dtype)
    parameters, total, examples = list(model.parameters()), 0.0, 0
    for batch in run.data:
        batch, N = _cast(batch, dtype)
        with sdpa_kernel(SDPBackend.MATH):  # the only one with a second derivative
            loss = run.loss(model, batch) if run.loss else run.loss_fn(model(batch[0]), batch[1])
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
        rows = [torch.autograd.grad(g, parameters, retain_graph=True) for g in gradient]
        total = total + N * torch.stack([torch.cat([x.reshape(-1) for x in row]) for row in rows])
        examples += N
    return total / examples


def _cast(batch: Any, dtype: torch.dtype) -> tuple[Any, int]:
    """Floating-point tensors in the dtype, and the number of examples."""
    if isinstance(batch, Tensor):
        return (batch.to(dtype) if batch.is_floating_point() else batch), len(batch)
    if isinstance(batch, dict):
        return {k: _cast(x, dtype)[0] for k, x in batch.items()}, len(next(iter(batch.values())))
    return tuple(_cast(x, dtype)[0] for x in batch), len(batch[0])


def snapshot(run: wc.TrainingRun) -> list[Any]:
    """All that an examination must leave as it was, bit for bit."""
    model, state = run.model, run.optimizer.state_dict()
    kept = [x.detach().clone() for x in (*model.parameters(), *model.buffers())]
    kept += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    kept += [x.clone() for s in state["state"].values() for x in s.values() if isinstance(x, Tensor)]
    flags = [m.training for m in model.modules()], [sorted(vars(m)) for m in model.modules()]
    return [*kept, torch.random.get_rng_state(), flags, str(state["param_groups"])]


def same(before: list[Any], after: list[Any]) -> bool:
    """Whether two snapshots are equal."""
    pairs = zip(before, after, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
