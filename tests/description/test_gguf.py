"""Models inside GGUF files: the same logits as from the safetensors they were made from, tokenizer, chat template."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from hypothesis import event, given
from hypothesis import strategies as st

from llmcli import conversion, description, loading
from llmcli.checkpoints import gguf
from llmcli.errors import ModelError
from llmcli.nn import prepacked
from llmcli.ops.linear_quantized import _unpack as unpack
from llmcli.tokenizer import Tokenizer
from tests import gguf_files
from tests.marks import kernels_only
from tests.models.families import Case, prompt, range_error, write

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip
GEMMA3 = Case(
    "gemma3_text",
    {
        "num_hidden_layers": 7,
        "layer_types": None,
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}},
    },
)
GEMMA2 = Case("gemma2")
CASES = [
    Case("gpt2"),
    Case("llama"),
    Case("llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    Case("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
         "attention_bias": True, "tie_word_embeddings": True}),
    Case("mistral", {"sliding_window": None}),
    Case("qwen2", {"tie_word_embeddings": True}),
    Case("qwen3"),
    Case("phi3"),
    GEMMA3,
    GEMMA2,
    Case("mixtral"),
    Case("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "num_key_value_heads": 6}),
    Case("gpt_neox"),
    Case("gpt_neox", {"use_parallel_residual": False}),
    Case("bloom"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.inference_mode()
def test_the_same_logits_as_from_safetensors(tmp_path: Path, case: Case) -> None:
    write(tmp_path, case)
    gguf_files.write(tmp_path, tmp_path / "model.gguf")
    old, new = (loading.load(path, pack=False) for path in (tmp_path, tmp_path / "model.gguf"))
    ids = prompt(2, 30)
    assert range_error(new.model(ids), old.model(ids)) <= (1e-5 if case in (GEMMA2, GEMMA3) else 0)  # norms near 1
    assert new.dtype == torch.float32
    assert new.model.config.n_positions == old.model.config.n_positions
    text = "The sea<|endoftext|> 12 olds"
    assert old.tokenizer.encode(text) == new.tokenizer.encode(text)
    assert (new.tokenizer.eos_id, new.tokenizer.vocab_size) == (0, old.tokenizer.vocab_size)


def test_a_window_comes_and_goes(tmp_path: Path) -> None:
    write(tmp_path, Case("phi3", {"sliding_window": 99}))
    gguf_files.write(tmp_path, tmp_path / "model.gguf")
    loaded = loading.load(tmp_path / "model.gguf", pack=False)
    assert (loaded.model.config.n_positions, loaded.model.window) == (256, 99)
    assert conversion.save_gguf(loaded, tmp_path / "again.gguf").model.window == 99


@pytest.mark.parametrize(("window", "context"), [(20, 20), (4096, 256)])
def test_where_nobody_reads_a_window_the_context_ends(tmp_path: Path, window: int, context: int) -> None:
    write(tmp_path, Case("mistral", {"sliding_window": window}))
    config = conversion.save_gguf(loading.load(tmp_path, pack=False), tmp_path / "x.gguf").model.config
    assert (config.model_type, config.n_positions, config.sliding_window) == ("llama", context, None)


def changed(source: Path, target: Path, metadata: dict[str, Any], tensors: dict[str, Any] | None = None) -> None:
    """A copy of a file with other metadata (None: without it), and with other tensors."""
    file, old = GGUFWriter(target, "gpt2"), gguf.open(source)
    kinds = {str: file.add_string, int: file.add_uint32, float: file.add_float32, bool: file.add_bool}
    for key in {**old.metadata, **metadata}:
        value = metadata.get(key, old.metadata.get(key)) if key in metadata else old.metadata[key]
        if isinstance(value, gguf.Items):
            value = old.items(key, str if value.kind == gguf.STRING else int)
        if key == "general.architecture" or value is None:
            continue
        file.add_array(key, value) if isinstance(value, list) else kinds[type(value)](key, value)
    if "general.architecture" in metadata:
        file.kv_data[0]["general.architecture"].value = metadata["general.architecture"]
    weights = {name: tensor.numpy() for name, tensor in gguf.Weights(old, torch.float32).items()}
    for name, tensor in (weights | (tensors or {})).items():
        if isinstance(tensor, tuple):
            file.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        elif tensor is not None:
            file.add_tensor(name, tensor)
    gguf_files.finish(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny GPT-2, as safetensors and as model.gguf."""
    directory = tmp_path_factory.mktemp("gpt2")
    write(directory, Case("gpt2"))
    gguf_files.write(directory, directory / "model.gguf")
    return directory


def test_padding_of_the_vocabulary_and_a_copy_of_the_tied_head(made: Path, tmp_path: Path) -> None:
    gguf_files.write(made, tmp_path / "padded.gguf", padding=12)
    weights = gguf.Weights(gguf.open(tmp_path / "padded.gguf"), torch.float32)
    head = weights["token_embd.weight"].numpy()
    changed(tmp_path / "padded.gguf", tmp_path / "x.gguf", {}, {"output.weight": head})
    loaded = loading.load(tmp_path / "x.gguf")
    assert loaded.model.config.vocab_size == 332
    assert loaded.tokenizer.vocab_size == 320
    assert loaded.model.config.tie_word_embeddings
    changed(tmp_path / "padded.gguf", tmp_path / "y.gguf", {}, {"output.weight": head + 1})
    assert not loading.load(tmp_path / "y.gguf").model.config.tie_word_embeddings


WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}  # rows of whole blocks


def in_blocks(directory: Path, kind: GGMLQuantizationType, head: GGMLQuantizationType | None = None) -> Path:
    """The checkpoint of a directory as a GGUF file whose matrices are blocks, the embedding those of `head`."""
    gguf_files.write(directory, directory / "model.gguf")
    tensors = {}
    for name, tensor in gguf.Weights(gguf.open(directory / "model.gguf"), torch.float32).items():
        own = (head or kind) if name.startswith("token_embd") else kind
        if tensor.dim() >= 2:
            tensors[name] = quantize(tensor.numpy(), own), own
    architecture = gguf.open(directory / "model.gguf").metadata["general.architecture"]
    changed(directory / "model.gguf", directory / "x.gguf", {"general.architecture": architecture}, tensors)
    return directory / "x.gguf"


@kernels_only
@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0], ids=["Q8_0", "Q4_0"])
@pytest.mark.parametrize(
    "case",
    [
        Case("gpt2", {"n_embd": 64, "n_head": 4}),
        Case("llama", {**WIDE, "tie_word_embeddings": True}),
        Case("phi3", WIDE),
        Case("mixtral", WIDE),
        Case("gpt_neox", WIDE),
    ],
    ids=str,
)
@torch.inference_mode()
def test_blocks_run_as_they_are(tmp_path: Path, case: Case, kind: GGMLQuantizationType) -> None:
    """Every matrix is the file's numbers in the bytes of its blocks; inputs in 8 bits move the logits little."""
    write(tmp_path, case)
    path = in_blocks(tmp_path, kind)
    loaded, plain = loading.load(path), loading.load(path, dtype="float32", pack=False)
    bits = 8 if kind == GGMLQuantizationType.Q8_0 else 4
    layers, numbers = prepacked.linear_layers(loaded.model), dict(plain.model.named_parameters())
    for name, layer in layers.items():
        assert layer.packed is not None
        panels, N, K = -(-layer.out_features // 64), layer.out_features, layer.in_features
        assert (layer.bits, layer.packed.nbytes) == (bits, panels * 64 * K // 32 * (2 + 4 * bits))
        weight = torch.cat([q * scale[:, None] for q, scale in unpack(layer.packed, K, N, bits)], 1)
        assert torch.equal(weight, numbers.get(f"{name}.weight", plain.model.tokens))
    assert "lm_head" in layers
    ids = prompt(2, 20)
    logits = loaded.model(ids)
    if case.model_type != "mixtral":  # which may take other experts
        assert range_error(logits.float(), plain.model(ids)) < 0.08
    assert torch.equal(torch.cat([loaded.model(row[None]) for row in ids]), logits)
    assert torch.equal(loading.load(path, dtype="bfloat16").model(ids), logits)


@kernels_only
@torch.inference_mode()
def test_blocks_packed_for_mapping(tmp_path: Path) -> None:
    """`convert --packed` keeps the blocks, also those of a head that is the embedding."""
    write(tmp_path, Case("gpt2", {"n_embd": 64, "n_head": 4}))
    loaded = loading.load(in_blocks(tmp_path, GGMLQuantizationType.Q8_0))
    conversion.save(loaded, tmp_path / "packed")
    again = loading.load(tmp_path / "packed")
    assert torch.equal(again.model(prompt(1, 9)), loaded.model(prompt(1, 9)))
    assert {layer.bits for layer in prepacked.linear_layers(again.model).values()} == {8}


@kernels_only
def test_blocks_beside_other_types(tmp_path: Path) -> None:
    """A head of another type stays a matrix of its own kind; blocks with infinite scales are refused."""
    write(tmp_path, Case("gpt2", {"n_embd": 64, "n_head": 4}))
    path = in_blocks(tmp_path, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q5_0)
    layers = prepacked.linear_layers(loading.load(path).model)
    assert {layer.bits for layer in layers.values()} == {4}
    assert "lm_head" not in layers
    damaged, file = bytearray(path.read_bytes()), gguf.open(path)
    damaged[file.tensors["blk.0.ffn_up.weight"].begin + 1] = 0x7C
    path.write_bytes(damaged)
    with pytest.raises(ModelError, match=r"mlp.c_fc.weight holds NaN or infinity"):
        loading.load(path)


@torch.inference_mode()
def test_quantised_weights_run_in_bfloat16_unless_asked(tmp_path: Path) -> None:
    write(tmp_path, Case("gpt2", {"n_embd": 64, "n_head": 4}))
    in_blocks(tmp_path, GGMLQuantizationType.Q8_0)
    automatic, exact = loading.load(tmp_path / "x.gguf"), loading.load(tmp_path / "x.gguf", dtype="float32")
    assert (automatic.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    ids = prompt(1, 20)
    old = loading.load(tmp_path).model(ids)
    assert 0 < range_error(exact.model(ids), old) < 0.02
    assert range_error(exact.model(ids), old) < range_error(automatic.model(ids).float(), old) < 0.05


def test_a_directory_of_one(made: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes((made / "model.gguf").read_bytes())
    with pytest.raises(ModelError, match=r"config.json: no such file; name the GGUF file itself: -m .*/m\.gguf$"):
        loading.load(tmp_path)


def test_chat_template_and_settings(made: Path) -> None:
    template = description.chat_template(made / "model.gguf", "<|endoftext|>")
    assert template.render([{"role": "user", "content": "hi"}]) == "<user>hi<|endoftext|>"
    settings = description.tokenizer_settings(made / "model.gguf")
    assert settings == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "chat_template": gguf_files.CHAT,
    }


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "mamba"}, "the architecture 'mamba' is not supported in GGUF files; expected one of"),
        ({"gpt2.block_count": None}, "expected one number gpt2.block_count in the metadata, got none"),
        ({"gpt2.block_count": [1, 2]}, "expected one number gpt2.block_count in the metadata, got several values"),
        ({"gpt2.block_count": "many"}, "expected one number gpt2.block_count in the metadata, got 'many'"),
        ({"gpt2.attention.head_count": 7}, "n_embd 48 is not a multiple of n_head 7"),
        ({"gpt2.block_count": 4_000_000_000}, "asks for 4000000000 layers"),
        ({"gpt2.expert_count": 8}, "gpt2.expert_count = 8 is not supported"),
        ({"gpt2.context_length": 5}, "has shape"),
        ({"split.count": 3}, "one of several files; join them first"),
        ({"tokenizer.ggml.model": "bert"}, "a tokenizer of the kind 'bert'; expected gpt2 or llama"),
        ({"tokenizer.ggml.model": None}, "a tokenizer of the kind 'none'"),
        (
            {"tokenizer.ggml.pre": "odd"},
            "tokenizer.ggml.pre = 'odd' is not supported; expected one of: bloom",
        ),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "2 tokens with 320 types"),
        ({"tokenizer.ggml.tokens": ["a"] * 320}, "expected distinct tokens"),
        ({"tokenizer.ggml.tokens": None}, "0 tokens with 320 types"),
        ({"tokenizer.ggml.tokens": 3}, "expected tokenizer.ggml.tokens to be an array, got 3"),
        ({"tokenizer.ggml.tokens": [1] * 320}, "expected tokenizer.ggml.tokens to hold str"),
        ({"tokenizer.ggml.merges": ["a"]}, "no readable tokenizer inside"),
        ({"tokenizer.ggml.merges": ["zz zz"]}, "no readable tokenizer inside"),
        ({"tokenizer.ggml.eos_token_id": 320}, "tokenizer.ggml.eos_token_id = 320; expected one of 320 tokens"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "expected tokenizer.ggml.eos_token_id to be a whole number, got 'x'"),
    ],
    ids=str,
)
def test_metadata_that_lies(made: Path, tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    changed(made / "model.gguf", tmp_path / "x.gguf", metadata)
    with pytest.raises(ModelError, match=message):
        loading.load(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blk.0.attn_norm.weight": None}, r"transformer.h.0.ln_1.weight|h.0.ln_1.weight is missing"),
        ({"token_embd.weight": None}, "expected the tensor token_embd.weight, got none"),
        ({"blk.0.extra.weight": np.zeros(3, np.float32)}, "the tensor blk.0.extra.weight has no place"),
        ({"blk.x.attn_norm.weight": np.zeros(3, np.float32)}, "the tensor blk.x.attn_norm.weight has no place"),
        ({"token_embd.weight": np.zeros((320, 47), np.float32)}, "has shape"),
        ({"token_embd.weight": np.full((320, 48), np.nan, np.float32)}, "holds NaN or infinity"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_tensors_that_do_not_fit(made: Path, tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    changed(made / "model.gguf", tmp_path / "x.gguf", {}, tensors)
    with pytest.raises(ModelError, match=message):
        loading.load(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"llama.expert_count": 3},
            r"ffn_gate_exps.weight has shape \[4, 88, 48\]; expected the matrices of 3 experts",
        ),
        ({"llama.expert_count": None}, "is missing .*: config.json and weights do not match"),
        ({"llama.expert_used_count": 9}, "num_experts_per_tok = 9; expected at most num_local_experts = 4"),
    ],
    ids=str,
)
def test_experts_that_are_not_as_many_as_said(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    write(tmp_path, Case("mixtral"))
    gguf_files.write(tmp_path, tmp_path / "model.gguf")
    changed(tmp_path / "model.gguf", tmp_path / "x.gguf", {"general.architecture": "llama", **metadata})
    with pytest.raises(ModelError, match=message):
        loading.load(tmp_path / "x.gguf")


def test_heads_that_do_not_divide_the_rows(tmp_path: Path) -> None:
    write(tmp_path, Case("llama"))
    gguf_files.write(tmp_path, tmp_path / "model.gguf")
    names = ("general.architecture", "llama.attention.head_count")
    odd = {names[0]: "llama", names[1]: 4, "llama.attention.head_count_kv": 4, "llama.attention.key_length": 12}
    rows = np.zeros((31, 48), np.float32)
    changed(tmp_path / "model.gguf", tmp_path / "x.gguf", odd, {"blk.0.attn_q.weight": rows})
    with pytest.raises(ModelError, match=r"which 4 heads do not divide|expected heads of one size"):
        loading.load(tmp_path / "x.gguf")


SENTENCES = ["Hello  world", " a cab", "naïve 中 €", "<s>cab</s>abc", "", "cabcab bca\ncab"]


def sentencepiece(path: Path, *, prefix: bool = True, opens: bool = True) -> tuple[list[str], list[float]]:
    """A file with a vocabulary of Llama's kind: controls, bytes, letters, and pairs by score → tokens and scores."""
    block = "\u2581"
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3] + [6] * 256
    words = [block, *"abcdelorwH", "ab", "ca", "bc", "cab", block + "c", block + "cab", "ll", "lo", "llo", "He", "wor"]
    scores = [0.0] * len(tokens) + [-10.0 - n for n in range(11)]
    scores += [-3.0, -2.0, -1.0, -4.0, -2.5, -5.0, -1.5, -1.2, -6.0, -7.0, -8.0]
    tokens, types = tokens + words, types + [1] * len(words)
    file = GGUFWriter(path, "llama")
    file.add_tokenizer_model("llama")
    file.add_token_list(tokens)
    file.add_token_types(types)
    file.add_token_scores(scores)
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_add_bos_token(opens)
    file.add_add_space_prefix(prefix)
    gguf_files.finish(file)
    return tokens, scores


def merged(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """SentencePiece's rule by hand: the best-scored neighbours become one, leftmost first; unknown text as bytes."""
    parts, score = list(text.replace(" ", "\u2581")), dict(zip(tokens, scores, strict=True))
    while pairs := [(score[a + b], -n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in score]:
        place = -max(pairs)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    ids = []
    for part in parts:
        ids += [tokens.index(part)] if part in score else [3 + byte for byte in part.encode()]
    return ids


@pytest.mark.parametrize("text", [text for text in SENTENCES if "<" not in text])
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_by_score(tmp_path: Path, text: str, prefix: bool) -> None:
    tokens, scores = sentencepiece(tmp_path / "x.gguf", prefix=prefix)
    tokenizer = description.tokenizer(tmp_path / "x.gguf")
    expected = merged(" " + text if prefix and text else text, tokens, scores)
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode_prompt(text) == [1, *expected]
    assert tokenizer.decode(expected) == text
    assert tokenizer.eos_id == 2


def test_special_tokens_of_sentencepiece(tmp_path: Path) -> None:
    tokens, _ = sentencepiece(tmp_path / "x.gguf", opens=False)
    tokenizer = description.tokenizer(tmp_path / "x.gguf")
    ids = tokenizer.encode("<s>cab</s>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.encode_prompt("cab") == [tokens.index("\u2581cab")]


def test_a_token_of_a_megabyte(tmp_path: Path) -> None:
    """All pairs of its halves would be a terabyte of text."""
    file = GGUFWriter(tmp_path / "x.gguf", "llama")
    file.add_tokenizer_model("llama")
    file.add_token_list(["<unk>", "a", "aa", "a" * (1 << 20)])
    file.add_token_types([2, 1, 1, 1])
    file.add_token_scores([0.0, -1.0, -2.0, -3.0])
    file.add_add_bos_token(False)
    gguf_files.finish(file)
    assert 2 in description.tokenizer(tmp_path / "x.gguf").encode("aa")


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "smollm", "bloom", "default"])
def test_ways_of_cutting_words(made: Path, tmp_path: Path, pre: str) -> None:
    changed(made / "model.gguf", tmp_path / "x.gguf", {"tokenizer.ggml.pre": pre})
    tokenizer = description.tokenizer(tmp_path / "x.gguf")
    for text in ("It's 12345 o'clock, isn't it?\n\n  Yes… naïve", "The sea"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert isinstance(tokenizer, Tokenizer)


@given(st.data())
def test_damage_to_a_model_is_refused_or_harmless(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    """Of a whole model, damaged anywhere in front of its weights: it loads and runs, or there is one line."""
    damaged = bytearray((made / "model.gguf").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 9000))
        fresh = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 4])))
        damaged[place : place + (len(fresh) if data.draw(st.booleans()) else 0)] = fresh
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        loaded = loading.load(path, pack=False)
        with torch.inference_mode():
            loaded.model(prompt(1, 3))
        loaded.tokenizer.encode("The sea")
        description.tokenizer_settings(path)
    except ModelError as error:
        event("refused")
        message = str(error)
    else:
        message = ""
    assert "\n" not in message
