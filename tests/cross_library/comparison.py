"""What the comparisons with other curvature libraries share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wellcond as wc
from tests.problems import SPECTRA, Case, batches_of
from wellcond.curvature import CurvatureOperator, EmpiricalFisher, GaussNewton, Hessian

MENDED = "the library no longer gets this wrong: drop this test, and what docs/spectra-speed.md says about it"


def library(name: str) -> Any:
    """A library by its module, or skip the test file."""
    return pytest.importorskip(name, reason=f"{name} is not installed; make test-cross-library has it")


def split(case: Case, *sizes: int) -> Case:
    """The same data in several batches."""
    x, y = case.data
    case.data = list(zip(x.split(sizes), y.split(sizes), strict=True))
    return case


OPERATORS = {"hessian": Hessian, "gauss-newton": GaussNewton, "empirical fisher": EmpiricalFisher}


def curvature_of(case: Case, kind: str, **options: Any) -> CurvatureOperator:
    """Ours, by kind."""
    return OPERATORS[kind](wc.Problem(case.model, case.loss_fn, case.data, **options))


def second_moment(case: Case) -> Tensor:
    """The mean over examples of the outer product of each one's gradient with itself, one by one."""
    total, parameters, examples = 0, list(case.model.parameters()), 0
    for x, y in batches_of(case):
        for i in range(len(x)):
            loss = case.loss_fn(case.model(x[i : i + 1]), y[i : i + 1])
            g = torch.cat([piece.reshape(-1) for piece in torch.autograd.grad(loss, parameters)])
            total, examples = total + torch.outer(g, g), examples + 1
    return total / examples


def close(theirs: Tensor, ours: Tensor, digits: int = 12) -> bool:
    """Whether two float64 matrices (or numbers) agree to so many digits of the largest entry."""
    return distance(theirs, ours) < 10.0**-digits


def distance(theirs: Tensor, ours: Tensor) -> float:
    """Largest difference of an entry, relative to the largest entry."""
    return float((theirs.detach() - ours).abs().max() / ours.abs().max())


def spectrum(matrix: Tensor) -> Tensor:
    """Eigenvalues of a matrix that is symmetric up to rounding, falling."""
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0)


def quadratic(name: str) -> Case:
    """A linear regression whose Hessian has the spectrum of that name."""
    values, n = SPECTRA[name], len(SPECTRA[name])
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for _ in range(2))
    X = left * (values * n / 2).sqrt() @ right
    return Case(nn.Linear(n, 1, bias=False).double(), nn.MSELoss(), (X, torch.randn(n, 1, dtype=torch.float64)))


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's buffers."""
    return {name: b.clone() for name, b in model.named_buffers()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether a model's buffers are what they were."""
    return all(torch.equal(b, before[name]) for name, b in model.named_buffers())
