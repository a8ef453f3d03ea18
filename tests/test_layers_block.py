"""The Gauss-Newton block of a layer under normalizations, against the matrices themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import wellcond as wc
from wellcond.condition_numbers import conditioning
from wellcond.normalization import layer_conditioning
from wellcond.normalization.layer_block import layer_block, normalizing
from wellcond.preconditioners import Standardization


def normalization(
    groups: int, bias: bool, seed: int = 0
) -> tuple[Standardization, list[nn.Parameter], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(2 * groups, 3, 2, dtype=torch.float64, generator=generator))
    b = nn.Parameter(torch.randn(2 * groups, dtype=torch.float64, generator=generator)) if bias else None
    mean = torch.randn(groups, 6, dtype=torch.float64, generator=generator) * bias
    scale = torch.rand(groups, 6, dtype=torch.float64, generator=generator) + 0.1
    return normalizing(weight, b, mean, scale), [weight] if b is None else [weight, b], (mean, scale)


@settings(deadline=None)
@given(st.integers(1, 3), st.booleans(), st.integers(0, 1000))
def test_apply_adjoint_and_invert_belong_together(groups, bias, seed):
    P, parameters, _ = normalization(groups, bias, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    x, y = ([torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in parameters] for _ in range(2))
    for a, b in zip(P.invert(P.apply(x)), x, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    left = sum(float((a * b).sum()) for a, b in zip(P.apply(x), y, strict=True))
    right = sum(float((a * b).sum()) for a, b in zip(x, P.adjoint(y), strict=True))
    assert left == pytest.approx(right, rel=1e-11, abs=1e-11)
    if bias:
        turned = P.over(parameters[::-1], ["b", "w"])
        for a, b in zip(turned.apply(x[::-1]), P.apply(x)[::-1], strict=True):
            assert torch.equal(a, b)


def test_the_layer_with_p_z_on_its_inputs_is_the_layer_with_z_on_normalized_ones():
    P, (weight, bias), (mean, scale) = normalization(1, True)
    h = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    W, b = P.apply([weight, bias])
    normalized = (h - mean) * scale
    torch.testing.assert_close(h @ W.flatten(1).T + b, normalized @ weight.flatten(1).T + bias, rtol=1e-12, atol=1e-12)


def test_what_does_not_fit_is_refused():
    weight, bias = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4))
    ones = torch.ones(1, 3)
    with pytest.raises(ValueError, match="no bias"):
        normalizing(weight, None, ones, ones)
    P = normalizing(weight, bias, ones, ones)
    with pytest.raises(ValueError, match="does not cover other"):
        P.over([weight, nn.Parameter(torch.ones(2))], ["weight", "other"])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    model.add_module("idle", nn.Linear(2, 2))
    model.forward = lambda x: model[1](model[0](x))
    problem = wc.Problem(model, nn.MSELoss(), (torch.randn(9, 3), torch.zeros(9, 2)))
    for idle in ("idle", layer_conditioning(problem)[-1]):
        with pytest.raises(ValueError, match="no data pass through 'idle'"):
            layer_block(problem, idle, "scaled")


def regression(hidden: int = 4, mean: float = 2.0) -> tuple[nn.Sequential, Tensor, wc.Problem]:
    torch.manual_seed(0)
    X = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64) + mean
    model = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1)).double()
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    return model, X, wc.Problem(model, nn.MSELoss(), (X, torch.randn(50, 1, dtype=torch.float64)))


def extended(H: Tensor) -> Tensor:
    return torch.cat([torch.ones(len(H), 1, dtype=H.dtype), H], 1)


def kappa(s: Tensor) -> float:
    return float(s.max() / s.min())


@pytest.mark.parametrize("name", [None, "centered", "scaled", "standardized"])
def test_the_block_of_one_output_is_within_the_bound(name):
    """Theory 5.1: block of row i is ĤᵀS_iĤ/N, and κ(block) ≤ κ(S_i)·κ(Ĥ)², which is what the figure stands for."""
    model, X, problem = regression()
    dense = layer_block(problem, "0", name).dense()
    layer = layer_conditioning(problem)[0]
    deviation, size = X.std(0, correction=0), X.square().mean(0).sqrt()
    H = {
        None: X,
        "centered": X - X.mean(0),
        "scaled": X / size,
        "standardized": (X - X.mean(0)) / deviation,
    }[name]
    slope = 1 - torch.tanh(model[0](X)).square().detach()
    S = 2 * (slope * model[2].weight.detach()).square()  # (N, outputs), of the mean squared error
    for i in range(4):
        own = [12 + i, *range(3 * i, 3 * i + 3)]  # b_i and W_i in [W; b]
        block = dense[own][:, own]
        torch.testing.assert_close(block, extended(H).T @ (S[:, i : i + 1] * extended(H)) / 50, rtol=1e-10, atol=1e-12)
        figure = getattr(layer, name or "kappa")
        assert figure.value == pytest.approx(kappa(torch.linalg.svdvals(extended(H))), rel=1e-8)
        truth = kappa(torch.linalg.eigvalsh(block))
        assert truth <= kappa(S[:, i]) * figure.value**2 * (1 + 1e-9)
        assert truth > 1


def test_for_one_linear_output_the_bound_is_the_truth():
    torch.manual_seed(0)
    X = torch.randn(40, 5, dtype=torch.float64) + 3
    problem = wc.Problem(nn.Linear(5, 1).double(), nn.MSELoss(), (X, torch.zeros(40, 1, dtype=torch.float64)))
    (layer,) = layer_conditioning(problem)
    for name in (None, "centered", "scaled", "standardized"):
        figure = getattr(layer, name or "kappa")
        for which in ("", layer):
            block = conditioning(layer_block(problem, which, name)).kappa_star
            assert block.value == pytest.approx(figure.value**2, rel=1e-7)


@pytest.mark.parametrize("name", ["centered", "scaled", "standardized"])
def test_the_block_of_a_convolution_is_that_on_normalized_patches(name):
    """Without padding, P = VD at every place of the kernel: PᵀGP from the Jacobian by the convolution's parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 2, groups=2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)).double()
    x, y = torch.randn(12, 4, 4, 4, dtype=torch.float64) + 1, torch.randn(12, 2, dtype=torch.float64)
    problem = wc.Problem(model, nn.MSELoss(), (x, y))
    dense = layer_block(problem, "0", name).dense()
    groups = layer_conditioning(problem)[0].groups
    plain = layer_block(problem, "0").dense()
    # The same from P as a matrix, a row of z at a time.
    n = plain.shape[0]
    P = torch.zeros(n, n, dtype=torch.float64)
    for j in range(n):
        z = torch.zeros(n, dtype=torch.float64)
        z[j] = 1
        W, b = z[:32].view(4, 8).clone(), z[32:].clone()
        for i in range(4):
            g = groups[i // 2]
            size = torch.hypot(g.mean, g.deviation) if name == "scaled" else g.deviation
            W[i] = W[i] if name == "centered" else W[i] / size
            b[i] = b[i] if name == "scaled" else b[i] - W[i] @ g.mean
        P[:, j] = torch.cat([W.flatten(), b])
    torch.testing.assert_close(dense, P.T @ plain @ P, rtol=1e-9, atol=1e-12)


class Attends(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.attention, self.readout = nn.MultiheadAttention(4, 2, **options), nn.Linear(4, 1)
        self.cross = bool(options)

    def forward(self, x: Tensor) -> Tensor:
        memory = torch.sin(x) if self.cross else x
        return self.readout(self.attention(x, memory, memory)[0].mean(1))


@pytest.mark.parametrize("options", [{}, {"dropout": 0.1}, {"kdim": 4, "vdim": 4}])
def test_attention_has_blocks(options):
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, 4, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    problem = wc.Problem(Attends(**options).double(), nn.MSELoss(), (x + 2, y))
    for name, size in (("attention.in_proj", 60), ("attention.out_proj", 20)):
        block = layer_block(problem, name, "standardized")
        assert block.size == size
        assert torch.linalg.eigvalsh(block.dense()).min() > -1e-12
        assert block.P._blocks[0].groups == (3 if options and name == "attention.in_proj" else 1)
    if options:
        with pytest.raises(ValueError, match=r"give attention\.in_proj"):
            layer_block(problem, "attention.q_proj")


def test_separate_projections_share_a_bias_and_have_no_block():
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))

    class Other(Attends):
        def forward(self, x):
            return self.readout(self.attention(x, x[..., :3], x)[0].mean(1))

    problem = wc.Problem(Other(kdim=3), nn.MSELoss(), (x, torch.zeros(6, 1)))
    with pytest.raises(ValueError, match="shares one bias"):
        layer_block(problem, "attention.k_proj")


def test_names_and_normalizations_that_are_none():
    _, _, problem = regression()
    with pytest.raises(ValueError, match="'1' is no layer"):
        layer_block(problem, "1")
    with pytest.raises(ValueError, match="normalization='batch'"):
        layer_block(problem, "0", "batch")
    frozen = wc.Problem(problem.model, nn.MSELoss(), problem.batches, parameters=["2.weight"])
    with pytest.raises(ValueError, match="none of the parameters"):
        layer_block(frozen, "0")
    bare = nn.Linear(3, 1, bias=False)
    problem = wc.Problem(bare, nn.MSELoss(), (torch.randn(9, 3), torch.zeros(9, 1)))
    with pytest.raises(ValueError, match="scale only"):
        layer_block(problem, "", "standardized")
    assert layer_block(problem, "", "scaled").size == 3
