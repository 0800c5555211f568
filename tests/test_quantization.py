"""A quantised model: the same from memory and from its directory, in any batch, chunk and thread count; bad ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcli import loading, quantization
from llmcli.checkpoints import directory as model_directory
from llmcli.checkpoints import safetensors
from llmcli.errors import InputError, ModelError
from llmcli.models.gpt2 import CONV1D
from llmcli.models.llama import Llama, LlamaConfig
from llmcli.nn import quantized
from llmcli.verification import cache, determinism
from tests.tiny import TINY, write_checkpoint, write_tokenizer

kinds = pytest.mark.parametrize("kind", ["int8", "int4"])


def quantise(source: Path, kind: str, output: Path, dtype: str = "auto") -> list[quantization.Matrix]:
    return quantization.save(loading.load(source, dtype=dtype, pack=False), kind, output)


def logits(loaded: loading.Loaded) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model(torch.arange(40)[None])


@pytest.fixture
def directory(tiny_gpt2: Path, tmp_path: Path) -> Path:
    """A quantised copy of the tiny model that a test may damage."""
    quantise(tiny_gpt2, "int8", tmp_path / "model")
    return tmp_path / "model"


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = {name: tensor.clone() for name, tensor in safetensors.open(directory).items()}
    change(weights)
    safetensors.save(directory / "model.safetensors", weights)


@kinds
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_round_trip(tiny_gpt2: Path, tmp_path: Path, kind: str, dtype: str) -> None:
    matrices = quantise(tiny_gpt2, kind, tmp_path / "model", dtype)
    saved, direct = loading.load(tmp_path / "model"), loading.load(tiny_gpt2, dtype=dtype, quantize=kind)
    assert torch.equal(logits(saved), logits(direct))
    assert (saved.quantized, saved.dtype) == (kind, direct.dtype)
    assert saved.engine()["quantized"] == kind
    plain = logits(loading.load(tiny_gpt2))
    assert (logits(saved) - plain).norm() < (0.03 if kind == "int8" else 0.2) * plain.norm()
    assert [m.bits for m in matrices] == [8 if kind == "int8" else 4] * 8 + [8]  # the head keeps 8
    assert model_directory.size(tmp_path / "model") < model_directory.size(tiny_gpt2)
    assert loading.load(tmp_path / "model", quantize=kind).quantized == kind


LLAMA = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
    "tie_word_embeddings": True,
}  # fmt: skip


def write_llama(directory: Path, **changes: Any) -> None:
    model = Llama(LlamaConfig.from_dict({**LLAMA, **changes})).initialize(torch.Generator().manual_seed(0))
    (directory / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    safetensors.save(directory / "model.safetensors", model.checkpoint())
    write_tokenizer(directory, 320)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_checkpoint(folder, replace(TINY, tie_word_embeddings=False)),
        write_llama,
        lambda folder: write_llama(folder, tie_word_embeddings=False),
    ],
)
def test_other_models_and_heads(tmp_path: Path, write: Callable[[Path], object]) -> None:
    (tmp_path / "plain").mkdir()
    write(tmp_path / "plain")
    matrices = quantise(tmp_path / "plain", "int4", tmp_path / "model")
    loaded = loading.load(tmp_path / "model")
    assert torch.equal(logits(loaded), logits(loading.load(tmp_path / "plain", quantize="int4")))
    assert [m.name for m in matrices if m.bits == 8] == ["lm_head"]
    assert "lm_head.weight" not in safetensors.open(tmp_path / "model")


@kinds
def test_one_hash_for_threads_batch_chunk_and_cache(tiny_gpt2: Path, kind: str) -> None:
    loaded = loading.load(tiny_gpt2, quantize=kind)
    ids = determinism.draw_prompts(3, 20, 320)
    runs = determinism.verify(loaded.model, ids, 4, determinism.settings([1, 2], [1, 3], [0, 7]), 64)
    assert len({run.sha256 for run in runs}) == 1
    prompts = [row[:n] for row, n in zip(ids.tolist(), (5, 13, 20), strict=True)]
    assert not [way for way in cache.verify(loaded.model, prompts, [1, 7], loaded.device) if way.differing]


def test_bytes_read_are_those_of_the_packs(tiny_gpt2: Path) -> None:
    plain, small = (loading.load(tiny_gpt2, quantize=kind).model for kind in (None, "int4"))
    others = plain.bytes_read(0, 1) - 4 * (2 * 12 * 32 * 32 + 320 * 32)
    assert small.bytes_read(0, 1) == sum(layer.packed.nbytes for _, layer in small.matrices()) + others
    assert small.lm_head.packed.nbytes == 320 * (32 + 2)  # int8, and one scale for up to 128 inputs


def test_what_is_kept(directory: Path, tiny_gpt2: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config[quantized.KEY] == {"quant_method": "llmcli", "version": 1, "format": "int8", "group_size": 128}
    stored, before = safetensors.open(directory), safetensors.open(tiny_gpt2)
    kept = [name for name in stored if not name.endswith(quantized.LEAVES)]
    assert all(torch.equal(stored[name], before[name]) for name in kept)
    assert set(before) - set(kept) == {name for name in before if name.endswith(CONV1D)}
    assert sorted(path.name for path in directory.parent.iterdir()) == ["model"]


@kinds
def test_close_on_the_embedded_model(kind: str) -> None:
    text = "The old king went into the forest with his three sons, and they came to a great castle of glass. " * 3
    nats = {}
    for asked in (None, kind):
        loaded = loading.load(quantize=asked)
        ids = torch.tensor(loaded.tokenizer.encode(text))[None]
        with torch.inference_mode():
            nats[asked] = -loaded.model.logprobs(ids).mean().item()
    assert abs(nats[kind] - nats[None]) < (0.01 if kind == "int8" else 0.1)


@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "holds NaN or infinity"), (0.0, "got only zeros at inputs 0 to 31 of output 3")]
)
def test_a_matrix_that_cannot_be_quantised(tiny_gpt2: Path, tmp_path: Path, value: float, message: str) -> None:
    source = Path(shutil.copytree(tiny_gpt2, tmp_path / "source"))
    change_weights(source, lambda weights: weights["transformer.h.1.mlp.c_fc.weight"][:, 3].fill_(value))
    for run in (lambda: loading.load(source, quantize="int4"), lambda: quantise(source, "int4", tmp_path / "out")):
        with pytest.raises(ModelError, match=rf"h\.1\.mlp\.c_fc\.weight.*{message}"):
            run()
    assert not (tmp_path / "out").exists()


def test_what_a_quantised_model_refuses(directory: Path) -> None:
    with pytest.raises(InputError, match=r"is quantised to int8, and asked for int4: use the model that it was made"):
        loading.load(directory, quantize="int4")
    with pytest.raises(InputError, match=r"is quantised to int8, and plain weights are needed"):
        loading.load(directory, pack=False)


HEAD, ATTN = "lm_head", "transformer.h.0.attn.c_attn"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(f"{HEAD}.scales"), "lm_head has no qweight or scales"),
        (lambda w: w.pop(f"{ATTN}.qweight"), r"h\.0\.attn\.c_attn has no qweight or scales"),
        (lambda w: w.update({f"{ATTN}.qweight": w[f"{ATTN}.qweight"][:-1]}), r"expected \[96, 32\] and \[96, 1\]"),
        (lambda w: w.update({f"{ATTN}.qweight": w[f"{ATTN}.qweight"].int()}), "of torch.int32"),
        (lambda w: w.update({f"{ATTN}.scales": w[f"{ATTN}.scales"].float()}), "of torch.float32"),
        (lambda w: w[f"{ATTN}.scales"].fill_(torch.nan), r"c_attn\.scales holds NaN"),
        (lambda w: w.update({"transformer.h.9.qweight": torch.ones(1)}), r"h\.9\.qweight has no place"),
        (lambda w: w["transformer.ln_f.bias"].fill_(torch.nan), r"ln_f\.bias holds NaN"),
    ],
)
def test_a_damaged_directory(directory: Path, change: Callable[[Any], object], message: str) -> None:
    change_weights(directory, change)
    with pytest.raises(ModelError, match=message):
        loading.load(directory)


def test_a_description_that_is_not_ours(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config[quantized.KEY]["version"] = 2
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantization_config = .* is not supported"):
        loading.load(directory)
