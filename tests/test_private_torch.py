"""Private names of torch: with them, and with the public fallback where they are taken away."""

from __future__ import annotations

import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch._inductor
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.problems import make
from wellcond import private_torch
from wellcond.curvature import Hessian
from wellcond.normalization import layer_conditioning
from wellcond.problem import Problem


def products(problem: Problem) -> list[torch.Tensor]:
    v = torch.randn(problem.size, dtype=problem.dtype, generator=torch.Generator().manual_seed(0))
    with problem:
        return [Hessian(problem) @ v for _ in range(3)]


def problem_of(name: str, **settings) -> Problem:
    case = make(name)
    return Problem(case.model, case.loss_fn, case.data, **settings)


@pytest.mark.parametrize(
    "take_away",
    [
        lambda patch: patch.delattr(torch._C, "DisableTorchFunction"),
        lambda patch: patch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
        lambda patch: patch.setattr(private_torch, "_is_module", lambda name: False),
    ],
    ids=["DisableTorchFunction", "_top_saved_tensors_default_hooks", "_dynamo"],
)
@pytest.mark.parametrize("name", ["batch norm", "dropout"])
def test_products_without_it_are_the_same(take_away, name, monkeypatch):
    expected = products(problem_of(name))
    take_away(monkeypatch)
    for x, y in zip(products(problem_of(name)), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("known", [True, False])
def test_compiled_modules_run_as_written_while_they_are_measured(known, monkeypatch):
    if not known:
        monkeypatch.setattr(private_torch, "_is_module", lambda name: False)
        monkeypatch.setattr(private_torch, "sys", SimpleNamespace(modules={}))
    compiled = []
    inner = torch.compile(nn.Linear(3, 1).double(), backend=lambda graph, _: compiled.append(graph) or graph.forward)
    data = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    Problem(nn.Sequential(inner), nn.MSELoss(), data).loss()
    assert not compiled


def test_programs_are_compiled_by_the_public_name(monkeypatch):
    expected = products(problem_of("tanh MLP"))
    monkeypatch.delattr(torch._inductor, "compile")
    asked, compile = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: asked.append(options) or compile(*args, **options))
    found = products(problem_of("tanh MLP", compile=True))
    assert len(asked) == 1
    for x, y in zip(found, expected, strict=True):
        assert torch.allclose(x, y, rtol=1e-10, atol=1e-13)


def test_the_compiler_is_not_imported_with_the_package():
    code = "import sys, wellcond; print({'torch._dynamo', 'torch._inductor'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


def test_a_layer_under_vmap_is_refused_where_what_it_sees_is_not_to_be_had(monkeypatch):
    class Mapped(nn.Module):
        def __init__(self, mapped: bool) -> None:
            super().__init__()
            self.inner, self.mapped = nn.Linear(3, 1), mapped

        def forward(self, x):
            return torch.func.vmap(self.inner)(x) if self.mapped else self.inner(x)

    x = torch.randn(20, 3)
    problems = [Problem(Mapped(mapped), nn.MSELoss(), (x, torch.zeros(20, 1))) for mapped in (False, True)]
    assert layer_conditioning(problems[1])[0].rows == 20
    plain = torch.zeros(2)
    monkeypatch.delattr(torch._C._functorch, "get_unwrapped")
    assert private_torch.out_of_vmap(plain) is plain
    assert layer_conditioning(problems[0])[0].rows == 20
    with pytest.raises(ValueError, match=r"layer inner is called by torch\.func\.vmap"):
        layer_conditioning(problems[1])


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
