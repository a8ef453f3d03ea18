"""Private names of torch: with them, and with the public fallback where they are taken away."""

from __future__ import annotations

import runpy
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from wellcond import private_torch


@pytest.fixture(params=["with private names", "without"])
def private(request, monkeypatch):
    """The functions, with torch's private names or as if it had none."""
    if request.param == "without":
        monkeypatch.setattr(private_torch, "torch", SimpleNamespace(_C=SimpleNamespace()))
    return private_torch


def test_foreach(private):
    x = [torch.ones(2), torch.ones(3)]
    private.foreach("add_", x, [torch.full((2,), 2.0), torch.zeros(3)])
    private.foreach("add_", x, torch.ones(()), alpha=0.5)
    assert [y.tolist() for y in x] == [[3.5, 3.5], [1.5, 1.5, 1.5]]
    private.foreach("copy_", x, [torch.zeros(2), torch.ones(3)])
    assert [y.tolist() for y in x] == [[0.0, 0.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("reentrant", [True, False])
def test_in_backward(private, reentrant):
    seen = []

    def layer(x):
        seen.append(private.in_backward())
        return x.square()

    x = torch.ones(2, requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    layer(x)
    assert seen == [False, True, False]


def test_uncompiled(monkeypatch):
    def without_dynamo(function):
        return "public"

    assert private_torch.uncompiled(lambda x: -x)(-2) == 2
    monkeypatch.delattr(torch, "_disable_dynamo")
    monkeypatch.setattr(torch.compiler, "disable", without_dynamo)
    assert runpy.run_path(private_torch.__file__)["uncompiled"](abs) == "public"
