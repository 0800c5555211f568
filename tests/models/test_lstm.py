"""Recurrent models beside torch.nn.LSTM and GRU, and every way of reading the same ids."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import loading
from llmcli.checkpoints import safetensors
from llmcli.commands.terminal import to_json
from llmcli.errors import ModelError
from llmcli.models.lstm import GATES, LSTM, LSTMConfig
from llmcli.ops import registry
from tests.conftest import Result
from tests.tiny import write_tokenizer

TINY = LSTMConfig(vocab_size=320, n_positions=64, n_embd=24, n_layer=2, initializer_range=0.5)
cells = pytest.mark.parametrize("cell", list(GATES))


def build(**changes: Any) -> LSTM:
    model = LSTM(replace(TINY, **changes)).initialize(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros would hide a bias that is forgotten
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    return model.eval()


def write(directory: Path, model: LSTM) -> Path:
    (directory / "config.json").write_text(to_json({**model.config.describe(), "eos_token_id": 0}))
    safetensors.save(directory / "model.safetensors", model.checkpoint())
    write_tokenizer(directory, 320)
    return directory


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 320, (3, 20), generator=torch.Generator().manual_seed(1))


@cells
@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_equals_torchs_module(cell: str, tied: bool, ids: torch.Tensor) -> None:
    model = build(cell=cell, tie_word_embeddings=tied)
    peer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](24, 24, 2, batch_first=True)
    for n, layer in enumerate(model.layers):
        for theirs, ours in (("ih", layer.input), ("hh", layer.hidden)):
            getattr(peer, f"weight_{theirs}_l{n}").copy_(ours.weight)
            getattr(peer, f"bias_{theirs}_l{n}").copy_(ours.bias)
    expected = peer(model.wte.weight[ids])[0] @ (model.wte if tied else model.lm_head).weight.T
    torch.testing.assert_close(model(ids), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@cells
@torch.inference_mode()
def test_prefill_is_steps_and_a_batch_is_its_rows(tmp_path: Path, cell: str, dtype: str, ids: torch.Tensor) -> None:
    model = loading.load(write(tmp_path, build(cell=cell)), dtype=dtype).model
    same = (
        torch.equal
        if registry.kernels is not None
        else partial(torch.allclose, atol=0.05 if dtype == "bfloat16" else 1e-4)
    )
    lengths = torch.tensor([20, 7, 1])
    together, state = model.start(ids, lengths, capacity=64)
    assert state.lengths.tolist() == [20, 7, 1]
    logits = model(ids)
    state.select(torch.tensor([2, 0, 1, 0]))
    again = ids[[2, 0, 1, 0]]
    after, ahead = model.step(again[:, :2], state), model.extend(again[:, 2:5], state)
    for row, length in enumerate(lengths.tolist()):
        alone, one = model.start(ids[row : row + 1, :1], capacity=64)
        for t in range(1, length):
            alone = model.step(ids[row : row + 1, t : t + 1], one)
        assert same(alone[0], together[row])
        assert same(alone[0], logits[row, length - 1])
        place = [1, 2, 0][row]
        assert same(model.step(ids[row : row + 1, :2], one)[0], after[place])
        for t in range(2, 5):
            assert same(model.step(ids[row : row + 1, t : t + 1], one)[0], ahead[place, t - 2])
    rounded = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(model.logprobs(ids), rounded, rtol=0, atol=0.02 if dtype == "bfloat16" else 1e-5)


@cells
def test_gradients_reach_every_parameter(cell: str, ids: torch.Tensor) -> None:
    model = build(cell=cell, tie_word_embeddings=False).train()
    model(ids).logsumexp(-1).mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "rnn"}, "cell 'rnn'"),
        ({"n_embd": 0}, "n_embd"),
        ({"n_layer": True}, "n_layer"),
        ({"vocab_size": "4096"}, "vocab_size"),
        ({"resid_pdrop": float("nan")}, "resid_pdrop"),
    ],
)
def test_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LSTMConfig.from_dict(change)


def test_every_command_takes_it(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("The sea was calm, and the old ship lay still. " * 40)
    size = '{"model_type": "lstm", "cell": "gru", "n_embd": 32, "n_layer": 1, "n_positions": 64, "vocab_size": 300}'
    result: Result = shell(
        f"echo '{size}' > size.json && llmcli train --data book.txt --config size.json --vocab-size 300 --iters 30 "
        "--lr 1e-2 --warmup-steps 2 --output model -q >&2 && llmcli generate -m model 'The sea' -n 8 && "
        "llmcli perplexity -m model book.txt --json"
    )
    assert result.code == 0, result.err
    if registry.kernels is not None:  # torch's own operators promise no bits
        assert shell("llmcli verify cache -m model").code == 0
    assert "ship" in result.out or "old" in result.out or "calm" in result.out
    assert '"ppl"' in result.out


def test_there_is_no_cache_of_keys_to_choose_a_type_for(tmp_path: Path, invoke: Any) -> None:
    result = invoke(f"generate -m {write(tmp_path, build())} a --cache-dtype int8")
    assert result.code == 2
    assert "error: --cache-dtype int8: LSTM models have no cache to choose a type for; leave it out" in result.err
