"""BERT and RoBERTa beside transformers: logits, batches, gradients; and what their files may say."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcli import loading
from llmcli.errors import ModelError
from llmcli.models.bert import BertConfig
from llmcli.ops import registry
from tests.models.families import SIZES, Case, prompt, range_error, write

KINDS = ("encoder",)
CASES = [
    Case("bert"),
    Case("bert", {"hidden_act": "relu", "layer_norm_eps": 0.1}),
    Case("bert", {"hidden_act": "gelu_new"}),
    Case("roberta"),
]
by_case = pytest.mark.parametrize("case", CASES, ids=str)


@by_case
@torch.inference_mode()
def test_logits(tmp_path: Path, case: Case) -> None:
    peer, ids = write(tmp_path, case), prompt(2, 128)
    model = loading.load(tmp_path, dtype="float32", kinds=KINDS).model
    assert model.config.n_positions == (130 if case.model_type == "bert" else 128)
    assert range_error(model.fill(model.encode(ids)), peer(ids).logits) < 1e-4


@by_case
@torch.inference_mode()
def test_without_a_head(tmp_path: Path, case: Case) -> None:
    """The bare model, whose names have no prefix, with the names of norms that the first releases have."""
    peer, ids = write(tmp_path, case), prompt(2, 20)
    bare = getattr(peer, case.model_type)
    bare.save_pretrained(tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace(end, old[end]) for name in weights for end in old if name.endswith(end)}
    assert len(renamed) == 14
    for name in list(weights):
        for end, new in old.items():
            if name.endswith(end):
                weights[name.replace(end, new)] = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors")
    model = loading.load(tmp_path, dtype="float32", kinds=KINDS).model
    assert model.headless
    assert range_error(model.encode(ids), bare(ids).last_hidden_state) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@torch.inference_mode()
def test_a_batch_is_its_rows(tmp_path: Path, dtype: str, quantize: str | None) -> None:
    write(tmp_path, CASES[0])
    model = loading.load(tmp_path, dtype=dtype, quantize=quantize, kinds=KINDS).model
    ids, lengths = prompt(3, 70), torch.tensor([70, 33, 1])
    loose = partial(torch.allclose, atol=0.5 if dtype == "bfloat16" else 1e-3)
    same = torch.equal if registry.kernels is not None else loose
    together = model.encode(ids, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model.encode(ids[row : row + 1, :length])
        assert same(alone[0], together[row, :length])
        assert same(model.fill(alone)[0], model.fill(together)[row, :length])


@by_case
def test_gradients_and_checkpoint(tmp_path: Path, case: Case) -> None:
    peer = write(tmp_path, case)
    model, ids = loading.load(tmp_path, dtype="float32", pack=False, kinds=KINDS).model.train(), prompt(2, 30)
    model.fill(model.encode(ids)).logsumexp(-1).sum().backward()
    peer(ids).logits.logsumexp(-1).sum().backward()
    ours = {model.stored(name): parameter for name, parameter in model.named_parameters()}
    for name, parameter in peer.named_parameters():
        scale = max(0.1, float(parameter.grad.abs().max()))  # a bias of keys changes nothing
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=2e-4 * scale, rtol=2e-3)
    saved, expected = model.checkpoint(), peer.state_dict()
    assert saved.keys() <= expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    assert loading.load(tmp_path, kinds=KINDS, pack=False).model.checkpoint().keys() == saved.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act 'silu' is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 5}, "expected a multiple"),
        ({"model_type": "roberta", "max_position_embeddings": 2}, "at least one position"),
        ({"hidden_size": None}, "hidden_size = missing"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
    ],
    ids=str,
)
def test_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        BertConfig.from_dict({**SIZES["bert"], **change})
