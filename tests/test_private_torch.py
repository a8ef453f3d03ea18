"""What is done where a private name of torch is gone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wellcond.normalization import layer_conditioning
from wellcond.private_torch import out_of_vmap
from wellcond.problem import Problem


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
    assert out_of_vmap(plain) is plain
    assert layer_conditioning(problems[0])[0].rows == 20
    with pytest.raises(ValueError, match=r"layer inner is called by torch\.func\.vmap"):
        layer_conditioning(problems[1])
