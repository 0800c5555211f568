"""GPT-2 against itself: every way of reading the same ids gives the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmcli import loading


@pytest.fixture(scope="module")
def model(tiny_gpt2: Path):
    return loading.load(tiny_gpt2).model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(1))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_prefill_and_steps_equal_forward(model, ids):
    logits = model(ids)
    got, state = model.start(ids[:, :7], capacity=40)
    close(got, logits[:, 6])
    for t in range(7, 20):
        close(model.step(ids[:, t : t + 1], state), logits[:, t])
    close(model.step(ids[:, 20:40], state), logits[:, 39])
    assert state.lengths.tolist() == [40, 40, 40]


@torch.inference_mode()
def test_unequal_rows_equal_single_ones(model, ids):
    lengths = torch.tensor([5, 31, 17])
    logits = model(ids)
    got, state = model.start(ids, lengths)
    close(got, logits[torch.arange(3), lengths - 1])
    for t in range(3):
        next_ids = ids[torch.arange(3), lengths + t]
        close(model.step(next_ids[:, None], state), logits[torch.arange(3), lengths + t])
