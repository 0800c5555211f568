"""GPT-2 beside transformers' GPT2LMHeadModel, on random checkpoints that transformers itself wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import loading
from tests.tiny import write_tokenizer

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES: dict[str, Any] = {"vocab_size": 320, "n_positions": 256, "n_embd": 48, "n_layer": 3, "n_head": 3}
TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}


def write(directory: Path, *, save: dict[str, Any] | None = None, **config: Any) -> Any:
    """Save a random GPT2LMHeadModel with our tokenizer in a directory; wide weights make the logits differ clearly."""
    torch.manual_seed(7)
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**{**SIZES, **TOKENS, "initializer_range": 0.25, **config})
    )
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith("bias") or ".ln_" in name:  # zeros and ones would hide a missing bias or norm
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    peer.eval().save_pretrained(directory, **(save or {}))
    write_tokenizer(directory, 320)
    return peer


def prompt(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 320, (rows, length), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def check_logits(directory: Path, peer: Any, length: int = 256) -> None:
    """The largest error is below 1e-4 of the range of the logits."""
    ids = prompt(length)
    expected = peer(ids).logits
    got = loading.load(directory, dtype="float32").model(ids)
    assert (got - expected).abs().max() < 1e-4 * (expected.max() - expected.min())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
        {"activation_function": "silu"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"n_inner": 77},
        {"n_head": 1},
        {"layer_norm_epsilon": 0.1},
        {"scale_attn_weights": False, "initializer_range": 0.1},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"tie_word_embeddings": False},
    ],
    ids=str,
)
def test_logits(tmp_path: Path, config: dict[str, Any]) -> None:
    check_logits(tmp_path, write(tmp_path, **config))


def test_sharded(tmp_path: Path) -> None:
    peer = write(tmp_path, save={"max_shard_size": "100KB"})
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    check_logits(tmp_path, peer)


def test_without_prefix(tmp_path: Path) -> None:
    peer = write(tmp_path)
    peer.transformer.save_pretrained(tmp_path)
    check_logits(tmp_path, peer)


def test_mask_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    peer = write(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 256, 256)
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    check_logits(tmp_path, peer)


@torch.inference_mode()
def test_greedy_text_of_200_tokens(tmp_path: Path) -> None:
    peer = write(tmp_path)
    ids = prompt(20, rows=1)
    expected = peer.generate(ids, max_new_tokens=200, min_new_tokens=200, do_sample=False, pad_token_id=0)
    model = loading.load(tmp_path).model
    logits, state = model.start(ids)
    got = []
    for _ in range(200):
        logits[:, 0] = -torch.inf  # min_new_tokens does the same to the end of text
        got.append(int(logits.argmax()))
        logits = model.step(torch.tensor([got[-1:]]), state)
    assert len(set(got)) > 20
    assert got == expected[0, 20:].tolist()


@torch.inference_mode()
def test_checkpoint_is_read_by_transformers(tmp_path: Path, tiny_gpt2: Path) -> None:
    """What llmcli saves, transformers reads back to the same logits."""
    ids = prompt(64)
    peer = transformers.GPT2LMHeadModel.from_pretrained(tiny_gpt2).eval()
    model = loading.load(tiny_gpt2).model
    torch.testing.assert_close(model(ids), peer(ids).logits, atol=1e-4, rtol=1e-4)
    config = json.loads((tiny_gpt2 / "config.json").read_text())
    assert config["model_type"] == peer.config.model_type
