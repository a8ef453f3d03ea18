"""Language models of transformers, made from a config: dictionaries of inputs, an output that holds its loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import wellcond as wc
from tests.cross_library.comparison import library
from tests.real import dense_hessian, sentences, taught
from tests.test_real_models import check_against, examined, of

VOCABULARY = 6


@pytest.fixture
def transformers():
    return library("transformers")


def gpt2(transformers, width: int) -> nn.Module:
    """Embeddings tied to the readout."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=8,
        n_embd=width,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama(transformers, width: int) -> nn.Module:
    """Rotary positions, grouped keys, gated layers."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def of_output(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).loss


def run(model: nn.Module) -> wc.TrainingRun:
    """A few steps of AdamW, on batches with padding."""
    data = []
    for tokens, _ in sentences():
        mask = torch.ones_like(tokens)
        mask[::3, 4:] = 0
        data.append({"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    return taught(wc.TrainingRun(model, None, data, optimizer, loss=of_output))


@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_thorough_examination_of_a_small_one_is_that_of_its_dense_hessian(build: Callable, transformers):
    torch.manual_seed(0)
    given = run(build(transformers, 4))
    m = examined(given).measurements
    assert 300 < m.parameters == sum(p.numel() for p in given.model.parameters()) < 1000
    assert any(name.endswith("lm_head") for name in [layer.name for layer in m.layers])
    check_against(dense_hessian(given, getattr(torch, m.dtype)), m)


@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_rate_100_times_too_large_is_severe_and_the_given_one_is_not(build: Callable, transformers):
    torch.manual_seed(0)
    given = run(build(transformers, 12))
    healthy = examined(given, quick=True)
    assert healthy.measurements.parameters > 2000
    assert healthy.severity is not wc.results.Severity.SEVERE
    given.optimizer.param_groups[0]["lr"] *= 100
    assert of(examined(given, quick=True), "learning_rate").severity is wc.results.Severity.SEVERE
