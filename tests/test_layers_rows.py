"""The rows that convolutions and attention see: their product with the weight is what the layer computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.problems import rows_of
from wellcond.normalization import layer_conditioning, rows
from wellcond.normalization.rows import attention_mixture
from wellcond.problem import Problem

CONVOLUTIONS = {
    "1d": lambda: (nn.Conv1d(3, 4, 3), (3, 9)),
    "1d strided, dilated": lambda: (nn.Conv1d(3, 4, 3, stride=2, dilation=2, padding=3), (3, 11)),
    "2d padded": lambda: (nn.Conv2d(2, 4, 3, padding=1), (2, 5, 6)),
    "2d of uneven kernel": lambda: (nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(2, 0)), (2, 5, 7)),
    "2d same, reflecting": lambda: (nn.Conv2d(2, 3, (2, 3), padding="same", padding_mode="reflect"), (2, 5, 6)),
    "2d same, dilated": lambda: (nn.Conv2d(2, 3, (4, 3), padding="same", dilation=2), (2, 7, 6)),
    "2d circular": lambda: (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 5, 6)),
    "2d replicated": lambda: (nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate", bias=False), (2, 4, 5)),
    "2d grouped": lambda: (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    "2d depthwise": lambda: (nn.Conv2d(3, 6, 2, stride=2, groups=3), (3, 8, 8)),
    "3d": lambda: (nn.Conv3d(2, 3, (2, 1, 3), padding=(1, 0, 1)), (2, 3, 4, 5)),
}


@pytest.fixture(params=CONVOLUTIONS)
def convolution(request) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module, shape = CONVOLUTIONS[request.param]()
    return module.double(), torch.randn(40, *shape, dtype=torch.float64) + torch.linspace(0, 2, 40).double().view(
        -1, *[1] * len(shape)
    )


def whole(module: nn.Module, x: Tensor, **options) -> Tensor:
    return torch.cat(list(rows_of(module, x, **options)), 1)


def extended(H: Tensor, bias: bool) -> Tensor:
    return torch.cat([torch.ones(len(H), 1, dtype=H.dtype), H], 1) if bias else H


def kappa(H: Tensor, bias: bool) -> float:
    s = torch.linalg.svdvals(extended(H, bias))
    return float(s[0] / s[s > 1e-11 * s[0]][-1])


def test_rows_times_weight_is_the_convolution(convolution):
    module, x = convolution
    H = whole(module, x)
    W = module.weight.detach().reshape(module.groups, -1, H.shape[2])
    output = torch.einsum("gnd,god->gno", H, W)
    expected = module(x).detach() - (0 if module.bias is None else module.bias.detach().view(-1, *[1] * (x.ndim - 2)))
    expected = expected.unflatten(1, (module.groups, -1)).movedim(1, 0).movedim(2, -1).flatten(1, -2)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_rows_in_small_pieces_are_the_same_rows(convolution, monkeypatch):
    module, x = convolution
    at_once = [whole(module, x), whole(module, x, normalized=True)]
    monkeypatch.setattr(rows, "PIECE", 50)
    assert len(list(rows_of(module, x))) > 40
    assert max(piece[0].numel() for piece in rows_of(module, x)) <= max(50, at_once[0].shape[2] * 40)
    assert torch.equal(whole(module, x), at_once[0])
    assert torch.equal(whole(module, x, normalized=True), at_once[1])


def test_figures_of_a_convolution_are_those_of_its_patches(convolution):
    module, x = convolution
    network = nn.Sequential(module, nn.Flatten())
    target = torch.zeros_like(network(x))
    (layer,) = layer_conditioning(Problem(network, nn.MSELoss(), [(x[:7], target[:7]), (x[7:], target[7:])]))
    bias, groups = module.bias is not None, layer.groups or (layer,)
    normalized = nn.functional.group_norm(x, 1)
    assert len(groups) == module.groups
    for group, H, N in zip(groups, whole(module, x), whole(module, normalized), strict=True):
        deviation, size = H.std(0, correction=0), H.square().mean(0).sqrt()
        assert group.kappa.value == pytest.approx(kappa(H, bias), rel=1e-8)
        assert group.centered.value == pytest.approx(kappa(H - H.mean(0), bias), rel=1e-8)
        assert group.scaled.value == pytest.approx(kappa(H / size, bias), rel=1e-8)
        assert group.standardized.value == pytest.approx(kappa((H - H.mean(0)) / deviation, bias), rel=1e-8)
        assert group.row_normalized.value == pytest.approx(kappa(N, bias), rel=1e-8)
        assert group.rank == torch.linalg.matrix_rank(extended(H, bias))
        assert (group.rows, group.columns) == extended(H, bias).shape
    assert layer.kappa == max(groups, key=lambda g: g.kappa.value).kappa
    assert layer.is_input


def test_an_unbatched_input_is_one_example():
    module = nn.Conv2d(2, 3, 3).double()
    x = torch.randn(2, 5, 5, dtype=torch.float64)
    assert torch.equal(whole(module, x), whole(module, x[None]))


class Attends(nn.Module):
    """Self- or cross-attention, and a readout."""

    def __init__(self, cross: bool, **options) -> None:
        super().__init__()
        self.attention, self.cross = nn.MultiheadAttention(8, 2, **options), cross
        self.widths = options.get("kdim") or 8, options.get("vdim") or 8
        self.readout = nn.Linear(8, 1)

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.cross:
            return x, x, x
        key, value = self.widths
        return x, x[..., :key].sin(), x[..., :value].tanh() + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.attention(*self.inputs(x))[0].mean(1))


OPTIONS = {
    "self": (False, {}),
    "self, batch first, no bias": (False, {"batch_first": True, "bias": False}),
    "self with dropout": (False, {"dropout": 0.5}),
    "self with more keys": (False, {"add_bias_kv": True, "add_zero_attn": True}),
    "cross": (True, {}),
    "cross of other widths": (True, {"kdim": 5, "vdim": 4, "batch_first": True}),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", OPTIONS)
def test_attention(name, mode):
    cross, options = OPTIONS[name]
    torch.manual_seed(0)
    model = Attends(cross, **options).double()
    x = torch.randn(30, 4, 8, dtype=torch.float64)
    problem = Problem(model, nn.MSELoss(), (x, torch.zeros(30, 1, dtype=torch.float64)), mode=mode)
    layers = {layer.name: layer for layer in layer_conditioning(problem)}
    bias = options.get("bias", True)
    seen = dict(zip("qkv", model.inputs(x), strict=True))
    if not cross:
        assert list(layers) == ["attention.in_proj", "attention.out_proj", "readout"]
        assert layers["attention.in_proj"].kappa.value == pytest.approx(kappa(x.flatten(0, 1), bias), rel=1e-8)
    else:
        assert list(layers) == [*(f"attention.{slot}_proj" for slot in "qkv"), "attention.out_proj", "readout"]
        for slot, y in seen.items():
            layer = layers[f"attention.{slot}_proj"]
            assert layer.kappa.value == pytest.approx(kappa(y.flatten(0, 1), bias), rel=1e-8)
            assert layer.is_input == (slot == "q")
    # What the output projection saw, as the very pass computed it: the readout's input undone.
    with problem.evaluating(), torch.no_grad():
        caught: list[Tensor] = []
        handle = model.attention.register_forward_hook(lambda m, args, output: caught.append(output[0]))
        state = torch.get_rng_state()
        problem.seed_batch(0)
        problem.batch_loss(0)
        handle.remove()
        torch.set_rng_state(state)
    W, b = model.attention.out_proj.weight.detach(), model.attention.out_proj.bias
    H = torch.linalg.solve(W, (caught[0] - (0 if b is None else b.detach())).flatten(0, 1).T).T
    out = layers["attention.out_proj"]
    assert out.rows == 120
    assert out.kappa.value == pytest.approx(kappa(H, bias), rel=1e-8)
    torch.testing.assert_close(out.mean, H.mean(0), rtol=1e-9, atol=1e-12)


def test_the_mixture_times_the_output_projection_is_the_attention():
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(8, 4, dropout=0.3).double(), torch.randn(5, 6, 8, dtype=torch.float64)
    before = dict(module.out_proj._parameters)
    torch.manual_seed(3)
    mixture = attention_mixture(module, (x, x, x), {"attn_mask": torch.ones(5, 5).triu(1).bool()})
    output, _ = module(x, x, x, attn_mask=torch.ones(5, 5).triu(1).bool())  # drops the same, as nothing was drawn
    expected = mixture @ module.out_proj.weight.T + module.out_proj.bias
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-14)
    assert all(module.out_proj._parameters[k] is p for k, p in before.items())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_layer_of_a_transformer_is_seen(mode):
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
            self.readout = nn.Linear(8, 1)

        def forward(self, x):
            padding = torch.zeros(x.shape[:2], dtype=torch.bool)
            return self.readout(self.encoder(x, src_key_padding_mask=padding).mean(1))

    problem = Problem(Encoder(), nn.MSELoss(), (torch.randn(12, 5, 8), torch.zeros(12, 1)), mode=mode)
    layers = layer_conditioning(problem)
    assert [layer.name.removeprefix("encoder.layers.") for layer in layers] == [
        f"{i}.{part}" for i in (0, 1) for part in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    ] + ["readout"]
    by_name = {layer.name: layer for layer in layers}
    # Layer-normalized in float32, its rows sum to zero to rounding: a dimension is missing, not nearly missing.
    assert by_name["encoder.layers.0.linear1"].rank == 8
    assert by_name["encoder.layers.0.linear1"].kappa.high < 10
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_attention_that_sees_one_input_and_then_two_keeps_them_apart():
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.readout = nn.MultiheadAttention(8, 2), nn.Linear(8, 1)

        def forward(self, x):
            y = self.attention(x, x, x)[0]
            z = torch.sin(3 * x)
            return self.readout(self.attention(y, z, z)[0].mean(1))

    x = torch.randn(9, 4, 8, dtype=torch.float64)
    model = Both().double()
    problem = Problem(model, nn.MSELoss(), (x, torch.zeros(9, 1, dtype=torch.float64)))
    layers = {layer.name: layer for layer in layer_conditioning(problem)}
    key = torch.cat([x, torch.sin(3 * x)]).flatten(0, 1)
    query = torch.cat([x, model.attention(x, x, x)[0].detach()]).flatten(0, 1)
    assert layers["attention.q_proj"].kappa.value == pytest.approx(kappa(query, True), rel=1e-8)
    assert layers["attention.k_proj"].kappa.value == pytest.approx(kappa(key, True), rel=1e-8)
    assert layers["attention.v_proj"].kappa == layers["attention.k_proj"].kappa


def test_layers_that_share_a_weight_share_their_rows():
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.idle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.idle.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    torch.manual_seed(0)
    x, model = torch.randn(15, 4, dtype=torch.float64), Shares().double()
    (layer,) = layer_conditioning(Problem(model, nn.MSELoss(), (x, torch.zeros_like(x))))
    H = torch.cat([x, torch.tanh(model.first(x)).detach()])
    assert (layer.name, layer.rows, layer.is_input) == ("first", 30, False)
    assert layer.kappa.value == pytest.approx(kappa(H, True), rel=1e-8)


def test_layers_under_vmap_and_weight_norm_are_seen_whole():
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(3, 1))

        def forward(self, x):
            return torch.func.vmap(self.inner)(x)

    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (layer,) = layer_conditioning(Problem(Mapped().double(), nn.MSELoss(), (x, torch.zeros(20, 1).double())))
    assert (layer.rows, layer.is_input) == (20, True)
    assert layer.kappa.value == pytest.approx(kappa(x, True), rel=1e-8)


def test_layers_never_called_are_named_as_they_would_be():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.attention, self.conv = nn.Linear(3, 1), nn.MultiheadAttention(4, 2), nn.Conv1d(2, 2, 1)

        def forward(self, x):
            return self.used(x)

    problem = Problem(Idle(), nn.MSELoss(), (torch.randn(5, 3), torch.zeros(5, 1)))
    layers = layer_conditioning(problem)
    assert [layer.name for layer in layers] == ["used", "attention.in_proj", "attention.out_proj", "conv"]
    assert [layer.rows for layer in layers] == [5, 0, 0, 0]
    assert math.isnan(layers[1].row_normalized.value)


def test_an_expert_that_gets_no_tokens_has_no_figures():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.busy, self.idle = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            self.idle(x[:0])
            return self.busy(x)

    layers = layer_conditioning(Problem(Experts(), nn.MSELoss(), (torch.randn(5, 3), torch.zeros(5, 1))))
    assert [(layer.name, layer.rows, layer.kappa.defined) for layer in layers] == [
        ("idle", 0, False),
        ("busy", 5, True),
    ]
