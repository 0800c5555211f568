"""The same bits for any thread count, batch, position in the batch and prompt chunking, through the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmcli import loading
from llmcli.models import gpt2
from llmcli.ops import registry

pytestmark = pytest.mark.skipif(registry.kernels is None, reason="torch's own products depend on the number of rows")


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def model(request: pytest.FixtureRequest, tiny_gpt2: Path) -> gpt2.GPT2:
    loaded: gpt2.GPT2 = loading.load(tiny_gpt2, dtype=request.param).model
    return loaded


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def prompt(model: gpt2.GPT2, rows: int, length: int) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


def test_threads(model: gpt2.GPT2) -> None:
    ids, before = prompt(model, 2, 60), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = model(ids)
        torch.set_num_threads(2)
        assert torch.equal(model(ids), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("company", [1, 3, 8])
def test_batch_and_position(model: gpt2.GPT2, company: int) -> None:
    ids = prompt(model, 8, 41)
    lengths = torch.tensor([41, 7, 1, 20, 33, 40, 2, 16])
    for row in range(company):
        alone, state = model.start(ids[row : row + 1, : lengths[row]])
        together, shared = model.start(ids[:company], lengths[:company])
        assert torch.equal(together[row], alone[0])
        for token in (3, 4):
            step = model.step(torch.full((1, 1), token), state)
            steps = model.step(torch.full((company, 1), token), shared)
            assert torch.equal(steps[row], step[0])


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_prompt_chunks_and_steps(model: gpt2.GPT2, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompt(model, 1, 50)
    whole, _ = model.start(ids)
    monkeypatch.setattr(gpt2, "CHUNK", chunk)
    chunked, _ = model.start(ids)
    assert torch.equal(chunked, whole)
    logits, state = model.start(ids[:, :1])
    for t in range(1, ids.shape[1]):
        logits = model.step(ids[:, t : t + 1], state)
    assert torch.equal(logits, whole)
