"""Readers of others' files on the kept corpus, on damaged copies of it, and on lies that were found or thought of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.checkpoints import safetensors
from llmcli.errors import ModelError
from llmcli.tokenizer import Tokenizer
from tests.conftest import Result
from tests.fuzz.readers import CORPUS, READERS, bounded

HOSTILE = [
    b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"-1", b"1e999", b"99999999999999999999", b"null", b"true", b'"',
    b"[" * 3000, b"{", b"}", b"[]", b"{}", b"\\ud800", b"\xed\xa0\x80", b"9" * 5000, b"{{", b"{%", b"*", b"(", b"",
]  # fmt: skip
FILES = {name: sorted((CORPUS / name).iterdir()) for name in READERS}


@pytest.mark.parametrize("name", READERS)
def test_the_corpus_is_read(name: str, tmp_path: Path) -> None:
    assert FILES[name]
    for path in FILES[name]:
        with bounded():
            READERS[name](path.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, derandomize=True)  # the fuzzers look for what is new
@given(data=st.data())
def test_damaged_copies_are_read_or_refused(name: str, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    damaged = bytearray(data.draw(st.sampled_from(FILES[name])).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged)))
        fresh = data.draw(st.one_of(st.sampled_from(HOSTILE), st.binary(min_size=1, max_size=9)))
        end = place + data.draw(st.sampled_from([0, 0, 1, 2, 4, 8, len(fresh), 100]))
        damaged[place:end] = fresh
    with bounded():
        READERS[name](bytes(damaged), tmp_path_factory.getbasetemp())


def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "9" * 5000 + ".safetensors", "b": "\0"}}))
    with pytest.raises(ModelError, match="names 2 files; missing"):
        safetensors.files(tmp_path)


def described(*, begin: int = 0, end: int = 16, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [*shape], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": described(), "b": described(begin=8, end=24)},  # overlap
        {"a": described(), "b": described()},  # the same place
        {"a": described(begin=-16, end=0)},
        {"a": described(begin=16, end=0)},
        {"a": described(end=1 << 60, shape=(1 << 58,))},
        {"a": described(shape=(1 << 40, 1 << 40))},
        {"a": described(shape=(-4,))},
        {"a": described(begin=8, end=24)},  # a hole before it
        {"a": described(dtype="F7")},
        {"a": {"dtype": "F32", "shape": [4]}},
        {"__metadata__": {"a": {"a": 1}}, "a": described()},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [None, 1 << 62, 7])
def test_safetensors_that_lie(header: dict[str, Any], size: int | None, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + bytes(24))
    with bounded(), pytest.raises(ModelError, match="not a readable safetensors file"):
        safetensors.open(path)


@pytest.mark.parametrize("number", [5000, 4_000_000_000])
@pytest.mark.parametrize("where", ["token", "last", "added", "template"])
def test_a_tokenizer_that_lies_about_its_size(
    where: str, number: int, tiny_gpt2: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    directory = shutil.copytree(tiny_gpt2, tmp_path / "model")
    document = json.loads((directory / "tokenizer.json").read_text())
    words = {token: word for word, token in document["model"]["vocab"].items()}
    used = Tokenizer.open(tiny_gpt2).encode("The sea was")[1]
    if where == "template":
        special = {"id": "x", "ids": [number], "tokens": ["x"]}
        single = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        kind = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {"x": special}}
        document["post_processor"] = kind
    elif where == "added":
        document["added_tokens"].append({**document["added_tokens"][0], "id": number, "content": "Zz"})
    else:
        document["model"]["vocab"][words[used if where == "token" else 319]] = number
    (directory / "tokenizer.json").write_text(json.dumps(document))
    with bounded():
        result = invoke(f"generate -m {directory} 'The sea was' -n 3")
    assert (result.code, result.out) == (5, "")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "config",
    [
        {"n_layer": 10**9}, {"n_embd": 10**12, "n_head": 1}, {"n_head": 10**12}, {"vocab_size": 10**18},
        {"n_layer": -1}, {"n_positions": 1e308}, {"n_layer": True}, {"n_embd": [32]}, {"n_head": 0},
        {"layer_norm_epsilon": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_that_lies(
    config: dict[str, Any], tiny_gpt2: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    directory = shutil.copytree(tiny_gpt2, tmp_path / "model")
    document = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(document | config))
    with bounded():
        result = invoke(f"generate -m {directory} 'The sea was' -n 3")
    assert (result.code, result.out) == (5, "")
    assert result.err.count("\n") == 1
