"""Copies of an optimizer: they step as it would, over tensors of their own, with what was attached or bare."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import wellcond as wc
from wellcond.preconditioners import clone

KINDS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "ours": lambda p: wc.optim.AdamW(p, lr=0.1, penalty=wc.penalties.L1(0.1)),
}


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[torch.Tensor]:
    X = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)

    def closure():
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", KINDS)
def test_a_clone_steps_its_own_tensors_as_the_optimizer_would(name):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    optimizer = KINDS[name](model.parameters())
    before = stepped(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict()["state"])
    twins = {}
    copied = copy.deepcopy(model, twins)
    twin = clone(optimizer, twins, attached=True)
    ahead = stepped(copied, twin, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for key, entry in optimizer.state_dict()["state"].items():
        assert entry.keys() == state[key].keys()
        assert all(torch.equal(x, state[key][n]) for n, x in entry.items() if isinstance(x, torch.Tensor))
    assert all(torch.equal(p, q) for p, q in zip(stepped(model, optimizer, 2), ahead, strict=True))


def test_what_is_attached_goes_along_if_asked_and_users_hooks_never():
    model = nn.Linear(3, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wc.regularize(optimizer, wc.penalties.L1(100.0), params="all")
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    for attached in (True, False):
        twins = {}
        copied = copy.deepcopy(model, twins)
        twin = clone(optimizer, twins, attached=attached)
        stepped(copied, twin, 1)
        assert all((p == 0).all() for p in copied.parameters()) is attached
    assert not calls
    assert "step" not in vars(twin)
    stepped(model, optimizer, 1)
    assert calls
