"""T5, FLAN-T5 and mT5 beside transformers: logits, greedy text, batches, gradients; and what their files may say."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcli import loading
from llmcli.errors import ModelError
from llmcli.models.t5 import T5Config
from llmcli.ops import registry
from tests.models.families import SIZES, Case, prompt, range_error, write

KINDS = ("encoder-decoder",)
CASES = [
    Case("t5"),
    Case("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    Case("t5", {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "num_decoder_layers": 1}),
    Case("mt5"),
]
by_case = pytest.mark.parametrize("case", CASES, ids=str)


def answer(rows: int, length: int) -> torch.Tensor:
    """What a decoder reads: the start token, then ids."""
    return torch.cat([torch.zeros(rows, 1, dtype=torch.int64), prompt(rows, length - 1)], 1)


@by_case
@torch.inference_mode()
def test_logits(tmp_path: Path, case: Case) -> None:
    peer, ids, read = write(tmp_path, case), prompt(2, 200), answer(2, 170)
    model = loading.load(tmp_path, dtype="float32", kinds=KINDS).model
    got = model(torch.cat([ids, ~read], 1))
    assert range_error(got[:, 200:], peer(input_ids=ids, decoder_input_ids=read).logits) < 1e-4
    assert not got[:, :200].any()


@torch.inference_mode()
def test_a_head_of_its_own_beside_a_config_that_says_tied(tmp_path: Path) -> None:
    """What a later tool writes for version 1.1: tied by its config, with a head in the file, and no scaling."""
    peer = write(tmp_path, CASES[1])
    weights = load_file(tmp_path / "model.safetensors")
    torch.manual_seed(1)
    weights["lm_head.weight"] = torch.randn(320, 48)
    save_file(weights, tmp_path / "model.safetensors")
    peer.lm_head.weight = torch.nn.Parameter(weights["lm_head.weight"])
    ids, read = prompt(1, 9), answer(1, 5)
    for said in (True, False):
        config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": said}
        (tmp_path / "config.json").write_text(json.dumps(config))
        model = loading.load(tmp_path, dtype="float32", kinds=KINDS).model
        got = model(torch.cat([ids, ~read], 1))[:, 9:]
        assert range_error(got, peer(input_ids=ids, decoder_input_ids=read).logits) < 1e-4
    assert loading.load(tmp_path, kinds=KINDS, pack=False).model.checkpoint().keys() == weights.keys()


@by_case
@torch.inference_mode()
def test_greedy_text_of_64_different_tokens(tmp_path: Path, case: Case) -> None:
    peer, ids = write(tmp_path, case), prompt(1, 20)
    expected = peer.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False, no_repeat_ngram_size=1)
    model = loading.load(tmp_path, kinds=KINDS).model
    logits, state = model.start(ids, capacity=100)
    got: list[int] = []
    for _ in range(64):
        logits[:, [0, 1, *got]] = -torch.inf  # no token twice, or a random model says the same for ever
        got.append(int(logits.argmax()))
        logits = model.step(torch.tensor([got[-1:]]), state)
    assert got == expected[0, 1:].tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@torch.inference_mode()
def test_prefill_is_steps_and_a_batch_is_its_rows(tmp_path: Path, dtype: str, quantize: str | None) -> None:
    write(tmp_path, CASES[1])
    model = loading.load(tmp_path, dtype=dtype, quantize=quantize, kinds=KINDS).model
    ids, lengths, more = prompt(3, 40), torch.tensor([40, 17, 1]), prompt(3, 6)
    loose = partial(torch.allclose, atol=0.5 if dtype == "bfloat16" else 1e-3)
    same = torch.equal if registry.kernels is not None else loose
    together, state = model.start(ids, lengths, capacity=60)
    after = model.step(more[:, :4], state)
    state.select(torch.tensor([2, 0]))
    last = model.step(more[[2, 0], 4:5], state)
    for row, length in enumerate(lengths.tolist()):
        alone, one = model.start(ids[row : row + 1, :length], capacity=60)
        assert same(alone[0], together[row])
        for t in range(4):
            alone = model.step(more[row : row + 1, t : t + 1], one)
        assert same(alone[0], after[row])
        if row != 1:
            assert same(model.step(more[row : row + 1, 4:5], one)[0], last[0 if row else 1])
    assert one.lengths.tolist() == [6]


@by_case
def test_gradients_and_checkpoint(tmp_path: Path, case: Case) -> None:
    """Two rows of unequal lengths as a training step sees them, beside transformers with a mask."""
    peer = write(tmp_path, case)
    model = loading.load(tmp_path, dtype="float32", pack=False, kinds=KINDS).model.train()
    ids, read, zeros = prompt(2, 30), answer(2, 12), torch.zeros(2, 9, dtype=torch.int64)
    rows = torch.stack([torch.cat([ids[0], ~read[0], zeros[0]]), torch.cat([ids[1, :21], ~read[1], *zeros])])
    logits = model(rows)
    (logits[0, 30:42].logsumexp(-1).sum() + logits[1, 21:33].logsumexp(-1).sum()).backward()
    seen = torch.arange(30) < torch.tensor([[30], [21]])
    peer(input_ids=ids, attention_mask=seen.long(), decoder_input_ids=read).logits.logsumexp(-1).sum().backward()
    ours = {model.stored(name): parameter for name, parameter in model.named_parameters()}
    for name, parameter in peer.named_parameters():
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(ours[name].grad, parameter.grad, atol=2e-4 * scale, rtol=2e-3)
    saved, expected = model.checkpoint(), load_file(tmp_path / "model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    write(tmp_path, CASES[0])
    model, ids = loading.load(tmp_path, kinds=KINDS).model, prompt(2, 9)
    for lengths in ([0, 3], [10, 3]):
        with pytest.raises(ValueError, match="1 to 9 tokens"):
            model.start(ids, torch.tensor(lengths))
    with pytest.raises(ValueError, match="9 <= capacity 8 <= n_positions 4096"):
        model.start(ids, capacity=8)
    with pytest.raises(ValueError, match="each of them as ~id"):
        model(ids)
    with pytest.raises(ModelError, match=r"kind encoder-decoder, expected decoder: use 'llmcli generate'"):
        loading.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj 'gated-silu' is not supported"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"relative_attention_num_buckets": 30}, "a multiple of 4"),
        ({"relative_attention_max_distance": 16}, "more than half"),
        ({"decoder_start_token_id": 320}, "an id of the vocabulary"),
        ({"decoder_start_token_id": "0"}, "decoder_start_token_id = '0'"),
        ({"d_model": None}, "d_model = missing"),
        ({"num_heads": 0}, "num_heads = 0"),
        ({"tie_word_embeddings": 1}, "scale_decoder_outputs = 1"),
    ],
    ids=str,
)
def test_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        T5Config.from_dict({**SIZES["t5"], **change})
