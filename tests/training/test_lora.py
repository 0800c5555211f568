"""Adapters: the model as it was at first, nothing but adapters learned, plain weights of the same function after."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmcli.errors import InputError
from llmcli.models.gpt2 import GPT2
from llmcli.training import lora
from llmcli.training.lora import LoRA, LoRALinear
from tests.tiny import TINY

IDS = torch.arange(24).view(2, 12) * 7 % TINY.vocab_size
SOME = LoRA(3, 6.0)


def make(adapters: LoRA = SOME, dtype: torch.dtype = torch.float32) -> GPT2:
    model = GPT2(replace(TINY, tie_word_embeddings=False)).initialize(torch.Generator().manual_seed(0)).to(dtype)
    lora.attach(model, adapters, seed=1)
    return model


def disturb(model: GPT2) -> None:
    """Adapters as after training, of about the size of the weights."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def test_begins_as_the_model_it_adapts() -> None:
    plain = GPT2(replace(TINY, tie_word_embeddings=False)).initialize(torch.Generator().manual_seed(0))
    assert torch.equal(make()(IDS), plain(IDS))


def test_trains_adapters_of_every_layer_in_the_blocks_only() -> None:
    trained = {name for name, parameter in make().named_parameters() if parameter.requires_grad}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert trained == {f"h.{i}.{layer}.lora_{part}" for i in range(2) for layer in layers for part in "ab"}


def test_trains_the_targets_that_are_named() -> None:
    model = make(LoRA(2, 4.0, ("c_fc",)))
    assert {name for name, module in model.named_modules() if isinstance(module, LoRALinear)} == {
        "h.0.mlp.c_fc",
        "h.1.mlp.c_fc",
    }
    with pytest.raises(InputError, match="'q_proj'; expected some of: c_attn, c_fc, c_proj"):
        make(LoRA(2, 4.0, ("q_proj",)))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_merged_is_a_plain_model_of_the_same_function(dtype: torch.dtype, bound: float) -> None:
    model = make(dtype=dtype)
    before = model(IDS)
    disturb(model)
    merged = lora.merged(model)
    assert isinstance(merged, GPT2)
    assert merged.checkpoint().keys() == GPT2(replace(TINY, tie_word_embeddings=False)).checkpoint().keys()
    adapted = model(IDS)
    assert (adapted - before).abs().max() > 0.5
    torch.testing.assert_close(merged(IDS), adapted, rtol=bound, atol=bound)
    assert merged.wte.weight is model.wte.weight  # what has no adapter is not copied
    assert torch.equal(model(IDS), adapted)


def test_the_update_is_scaled_by_alpha_over_rank() -> None:
    model = make(LoRA(4, 10.0))
    disturb(model)
    layer = model.h[0].mlp.c_fc
    expected = layer.weight.double() + 2.5 * layer.lora_b.double() @ layer.lora_a.double()
    torch.testing.assert_close(layer.merged().weight.double(), expected, rtol=1e-5, atol=1e-5)
