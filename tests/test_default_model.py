"""The embedded model: its files, its size, and that it has learned English."""

from __future__ import annotations

import torch

from llmcli import diagnosis, hub, loading
from tests.tiny import TEXT


def test_files_are_whole_and_small() -> None:
    assert diagnosis.default_model()["problem"] is None
    assert (hub.DEFAULT / "model.safetensors").stat().st_size <= 16e6


def test_predicts_english() -> None:
    loaded = loading.load(pack=False)
    assert 5e6 <= sum(parameter.numel() for parameter in loaded.model.parameters()) <= 10e6
    assert 4096 <= loaded.tokenizer.vocab_size <= 8192
    ids = torch.tensor([[loaded.tokenizer.eos_id, *loaded.tokenizer.encode(TEXT)]])
    with torch.inference_mode():
        bits = -loaded.model.logprobs(ids).sum().item() / torch.log(torch.tensor(2.0)).item()
    # The frequencies of letters alone bring English to about 4.2 bits a byte.
    assert bits / len(TEXT.encode()) < 2.2
