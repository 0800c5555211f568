"""GGUF files that we write: read again by us and by ggml's own package, with the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf as package
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llmcli import conversion, description, loading
from llmcli.checkpoints import gguf
from llmcli.description.gguf_vocabulary import PATTERNS
from llmcli.errors import InputError
from tests import gguf_files
from tests.description.test_gguf import CASES, GEMMA2, GEMMA3, sentencepiece
from tests.models.families import Case, prompt, range_error, write
from tests.tiny import TEXT


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.inference_mode()
def test_float32_keeps_every_bit_and_has_the_names_of_llama_cpp(tmp_path: Path, case: Case) -> None:
    write(tmp_path, case)
    gguf_files.write(tmp_path, tmp_path / "theirs.gguf")
    old = loading.load(tmp_path, pack=False)
    new = conversion.save_gguf(old, tmp_path / "ours.gguf")
    bound = 1e-5 if case in (GEMMA2, GEMMA3) else 0  # norms around 1 there
    assert range_error(new.model(prompt(2, 30)), old.model(prompt(2, 30))) <= bound
    assert (new.path, new.tokenizer.eos_id) == (tmp_path / "ours.gguf", old.tokenizer.eos_id)
    ours, theirs = (gguf.open(tmp_path / f"{name}.gguf") for name in ("ours", "theirs"))
    assert {**ours.tensors}.keys() == {**theirs.tensors}.keys()
    for name, tensor in gguf.Weights(theirs, torch.float32).items():
        close = 0 if name != "rope_freqs.weight" else 1e-5
        assert torch.allclose(gguf.Weights(ours, torch.float32)[name], tensor, rtol=close, atol=0), name
    for key in theirs.metadata.keys() & ours.metadata.keys() - {"tokenizer.chat_template"}:
        if not isinstance(theirs.metadata[key], gguf.Items):
            assert ours.metadata[key] == pytest.approx(theirs.metadata[key]), key
    for key in ("tokens", "token_type", "merges"):
        kind = int if key == "token_type" else str
        assert ours.items(f"tokenizer.ggml.{key}", kind) == theirs.items(f"tokenizer.ggml.{key}", kind)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "int8", "int4"])
@torch.inference_mode()
def test_the_package_of_ggml_reads_the_same_numbers(tmp_path: Path, kind: str) -> None:
    write(tmp_path, Case("llama", {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}))
    wide = kind.startswith("int")
    old = loading.load(tmp_path, pack=False, dtype="float32" if wide else kind)
    new = conversion.save_gguf(old, tmp_path / "x.gguf", kind if wide else None)
    stored = {tensor.name: tensor for tensor in package.GGUFReader(tmp_path / "x.gguf").tensors}
    ours = gguf.Weights(gguf.open(tmp_path / "x.gguf"), torch.float32)
    assert stored.keys() == {*ours}
    for name, tensor in ours.items():
        theirs = torch.from_numpy(package.dequantize(stored[name].data, stored[name].tensor_type).copy())
        assert torch.equal(tensor.float(), theirs), name
    kinds = {name: tensor.tensor_type.name for name, tensor in stored.items()}
    assert kinds["blk.0.ffn_up.weight"] == conversion.GGUF_TYPES[kind]
    assert kinds["token_embd.weight"] == {"int4": "Q8_0"}.get(kind, conversion.GGUF_TYPES[kind])
    assert kinds["output_norm.weight"] == "F32"
    matrix = old.model.checkpoint()["model.layers.0.mlp.up_proj.weight"].float()
    change = (ours["blk.0.ffn_up.weight"].float() - matrix).norm() / matrix.norm()
    assert change < {"int8": 0.01, "int4": 0.15}.get(kind, 1e-9)
    assert new.model(prompt(2, 30)).isfinite().all()


@pytest.mark.parametrize("number", ["Q8_0", "Q4_0"])
def test_blocks_are_packed_as_ggml_packs_them(number: str) -> None:
    from llmcli.checkpoints import blocks

    weights = torch.randn(40, 96) * torch.logspace(-6, 3, 40)[:, None]
    weights[3] = 0
    expected = package.quantize(weights.numpy(), package.GGMLQuantizationType[number])
    assert torch.equal(blocks.write(weights, number).view(40, -1), torch.from_numpy(expected))


def test_rows_that_are_no_whole_blocks_stay_float16(tmp_path: Path) -> None:
    write(tmp_path, Case("gpt2"))
    conversion.save_gguf(loading.load(tmp_path, pack=False), tmp_path / "x.gguf", "int8")
    tensors = gguf.open(tmp_path / "x.gguf").tensors
    assert (tensors["blk.0.attn_qkv.weight"].kind, tensors["blk.0.ffn_down.weight"].kind) == ("F16", "Q8_0")


def llama_tokenizer(directory: Path, *, metaspace: bool = False) -> None:
    """A tokenizer.json as Llama 2's: the vocabulary of `sentencepiece` as BPE with bytes to fall back on."""
    tokens, _ = sentencepiece(directory / "vocabulary.gguf")
    read = json.loads(description.tokenizer(directory / "vocabulary.gguf").backend.to_str())
    merges = [tuple(merge) for merge in read["model"]["merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


@pytest.mark.parametrize("metaspace", [False, True])
def test_a_sentencepiece_tokenizer(tmp_path: Path, metaspace: bool) -> None:
    write(tmp_path, Case("llama", {"eos_token_id": 2}))
    llama_tokenizer(tmp_path, metaspace=metaspace)
    old = loading.load(tmp_path, pack=False)
    new = conversion.save_gguf(old, tmp_path / "x.gguf")
    for text in ("cab cabbc  llo", "naïve 中"):
        assert new.tokenizer.encode_prompt(text) == old.tokenizer.encode_prompt(text)
        assert new.tokenizer.decode(new.tokenizer.encode(text)) == text
    file = gguf.open(tmp_path / "x.gguf")
    assert file.items("tokenizer.ggml.token_type", int)[:4] == [2, 3, 3, 6]
    assert file.get("tokenizer.ggml.add_bos_token", bool)
    assert (file.get("tokenizer.ggml.bos_token_id", int), file.get("tokenizer.ggml.eos_token_id", int)) == (1, 2)


def test_llama_3_words_and_a_template_beside(tmp_path: Path) -> None:
    write(tmp_path, Case("llama"))
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    cut = pre_tokenizers.Split(Regex(PATTERNS["llama-bpe"]), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(gguf_files.CHAT)
    new = conversion.save_gguf(loading.load(tmp_path, pack=False), tmp_path / "x.gguf")
    assert gguf.open(new.path).get("tokenizer.ggml.pre", str) == "llama-bpe"
    assert description.chat_template(new.path, "</s>").source == gguf_files.CHAT
    assert new.tokenizer.encode(TEXT) == backend.encode(TEXT).ids


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("opt"), "opt models cannot be written as GGUF; expected one of: bloom, gemma2, gemma3_text"),
        (Case("gemma2", {"attn_logit_softcapping": None}), "attn_logit_softcapping"),
        (Case("gemma3_text"), "query_pre_attn_scalar|layer_types"),
        (Case("gpt2", {"activation_function": "relu"}), "activation_function = 'relu' cannot be said in a GGUF file"),
        (Case("gpt2", {"scale_attn_by_inverse_layer_idx": True}), "scale_attn_by_inverse_layer_idx = True cannot be"),
        (Case("gpt_neox", {"attention_bias": False}), "attention_bias = False cannot be said"),
    ],
    ids=str,
)
def test_models_that_gguf_cannot_describe(tmp_path: Path, case: Case, message: str) -> None:
    write(tmp_path, case)
    with pytest.raises(InputError, match=message):
        conversion.save_gguf(loading.load(tmp_path, pack=False), tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*.gguf*"))
    assert not list(tmp_path.glob(".*"))


def lower_case(backend: Any) -> None:
    backend.normalizer = normalizers.Lowercase()


def by_spaces(backend: Any) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])


@pytest.mark.parametrize("change", [lower_case, by_spaces])
def test_tokenizers_that_gguf_has_no_name_for(tmp_path: Path, change: Any) -> None:
    write(tmp_path, Case("gpt2"))
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    change(backend)
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="way of cutting words has no name in GGUF files"):
        conversion.save_gguf(loading.load(tmp_path, pack=False), tmp_path / "x.gguf")
