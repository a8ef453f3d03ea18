"""Optimizers of another library: read by a registration of three lines, or penalized where P is not needed."""

from __future__ import annotations

import pytest
import torch
from pytorch_optimizer import AdaBelief, Lion, Tiger
from torch import nn

import wellcond as wc
from wellcond.penalties import L1


@wc.preconditioners.reads(AdaBelief)
def squared_scale(state, group):
    return 1 / ((state["exp_avg_var"] / (1 - group["betas"][1] ** group["step"])).sqrt() + group["eps"])


def fresh(build, **options):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    return weight, build([weight], lr=0.05, weight_decay=0.0, **options)


def run(weight, optimizer, steps):
    for t in range(steps):
        weight.grad = torch.sin(torch.arange(12.0, dtype=torch.float64) * (t + 1)).reshape(4, 3) + 0.1 * weight.detach()
        optimizer.step()


@pytest.mark.parametrize("foreach", [False, True])
def test_a_registered_optimizer_steps_by_the_p_that_is_read(foreach):
    weight, optimizer = fresh(AdaBelief, foreach=foreach)
    for t in range(1, 7):
        before = weight.detach().clone()
        run(weight, optimizer, 1)
        moved = (
            0.05 / (1 - 0.9**t) * wc.preconditioner_of(optimizer).scales[0] ** 2 * optimizer.state[weight]["exp_avg"]
        )
        assert torch.allclose(weight.detach(), before - moved, rtol=1e-12)


def test_and_takes_penalties_in_intrinsic_space():
    weight, optimizer = fresh(AdaBelief)
    twin, plain = fresh(AdaBelief)
    wc.regularize(optimizer, L1(0.3))
    run(weight, optimizer, 1)
    run(twin, plain, 1)
    scale = wc.preconditioner_of(plain).scales[0]
    assert torch.allclose(weight, scale * L1(0.3).prox(twin.detach() / scale, 0.05), rtol=1e-12)
    run(weight, optimizer, 20)
    assert (weight == 0).any()


@pytest.mark.parametrize("build", [Lion, Tiger])
def test_sign_methods_are_refused_and_go_in_euclidean_space(build):
    weight, optimizer = fresh(build)
    with pytest.raises(TypeError, match=f"{build.__name__} can't be read"):
        wc.regularize(optimizer, L1(0.3))
    wc.regularize(optimizer, L1(1.5), space="euclidean")
    run(weight, optimizer, 60)
    assert (weight == 0).any()
