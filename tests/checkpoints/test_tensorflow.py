"""TensorFlow's checkpoints: round trips, truncation, lies; GPT-2 as OpenAI published it through the real binary."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli import loading
from llmcli.checkpoints import tensorflow
from llmcli.errors import ModelError
from tests.conftest import Result
from tests.ops.samples import normal
from tests.tensorflow_files import block, entry, field, number, table, write, write_gpt2

TENSORS = {f"model/h{n}/mlp/{name}": normal(n + 1, 3, seed=n) for n in range(12) for name in ("c_fc/w", "c_proj/w")}
TENSORS |= {"model/wte": normal(7, 5).half(), "model/wpe": normal(2, 3, 4).bfloat16(), "step": torch.tensor(2.0)}


@pytest.mark.parametrize("shards", [1, 3])
def test_round_trip(tmp_path: Path, shards: int) -> None:
    index = write(tmp_path, TENSORS, shards=shards)
    assert tensorflow.recognised(tmp_path)
    assert tensorflow.recognised(index)
    for path in (tmp_path, index):
        assert len(tensorflow.files(path)) == 1 + shards
        weights = tensorflow.open(path)
        assert {*weights} == {*TENSORS}
        for name, tensor in TENSORS.items():
            assert weights[name].dtype == tensor.dtype
            assert torch.equal(weights[name], tensor)
    weights["step"].add_(1)  # the map is private
    weights.release()
    assert weights["step"] == 2
    assert tensorflow.open(tmp_path)["step"] == 2


def test_what_is_recognised(tmp_path: Path) -> None:
    assert not tensorflow.recognised(tmp_path)
    index = write(tmp_path, TENSORS)
    (tmp_path / "model.safetensors").write_bytes(b"")  # the other format is there, too
    assert not tensorflow.recognised(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "other.ckpt.index").write_bytes(index.read_bytes())
    with pytest.raises(ModelError, match=r"got model\.ckpt\.index, other\.ckpt\.index; name the one"):
        tensorflow.open(tmp_path)


HEADER = (b"", field(1, 1))
LIES: dict[str, tuple[bytes, str]] = {
    "no table": (b"\0" * 60, "does not end as a table"),
    "no header": (table([]), "no header"),
    "shards": (table([(b"", field(1, 1 << 40))]), "1099511627776 files"),
    "order of bytes": (table([(b"", field(1, 1) + field(2, 1))]), "high bytes first"),
    "beyond the end": (table([HEADER, (b"a", entry(torch.zeros(2), 0, 1 << 40))]), "a ends at"),
    "another size": (table([HEADER, (b"a", entry(torch.zeros(2), 0, 0) + field(5, 4))]), "4 bytes at 0"),
    "huge": (table([HEADER, (b"a", field(1, 1) + field(2, field(2, field(1, 1 << 60)) * 8) + field(5, 8))]), "shape"),
    "nothing": (table([HEADER, (b"a", field(1, 1) + field(2, field(2, field(1, 0))))]), "shape"),
    "another shard": (table([HEADER, (b"a", entry(torch.zeros(2), 1, 0))]), "shape"),
    "a type": (table([HEADER, (b"a", field(1, 9) + field(5, 8))]), "TensorFlow's type 9"),
    "slices": (table([HEADER, (b"a", entry(torch.zeros(2), 0, 0) + field(7, b""))]), "slices"),
    "a message": (table([HEADER, (b"a", b"\x0a\x7f")]), "cut off"),
    "a name": (table([HEADER, (b"a\n", entry(torch.zeros(2), 0, 0))]), "the name"),
    "a name twice": (table([HEADER, *[(b"a", entry(torch.zeros(2), 0, 0))] * 2]), "the name 'a'"),
    "compressed": (table([HEADER], compression=1), "compressed"),
    "a block": (number(1 << 30) * 4 + bytes(28) + tensorflow.MAGIC, "a block of"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(tmp_path: Path, lie: str) -> None:
    data, words = LIES[lie]
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(bytes(8))
    (tmp_path / "model.ckpt.index").write_bytes(data)
    with pytest.raises(ModelError, match=words) as error:
        tensorflow.open(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_parts(tmp_path: Path) -> None:
    index = write(tmp_path, TENSORS, shards=2)
    (tmp_path / "model.ckpt.data-00001-of-00002").unlink()
    with pytest.raises(ModelError, match=r"data-00001-of-00002: missing or empty"):
        tensorflow.open(index)
    for size in range(0, index.stat().st_size, 37):
        index.write_bytes(index.read_bytes()[:size])
        with pytest.raises(ModelError):
            tensorflow.open(index)


@settings(max_examples=60, derandomize=True)
@given(entries=st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=20), data=st.data())
def test_any_table_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, entries: Any, data: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "model.ckpt.index"
    whole = bytearray(table(entries, together=data.draw(st.integers(1, 6))))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole))
    with contextlib.suppress(ModelError):
        tensorflow.files(path)


def test_blocks_share_the_beginnings_of_keys() -> None:
    assert len(block([(b"model/h0/a", b""), (b"model/h0/b", b"")])) < 30


@pytest.mark.slow
def test_the_published_gpt2(tiny_gpt2: Path, tmp_path: Path, shell: Callable[..., Result]) -> None:
    original = tmp_path / "124M"
    original.mkdir()
    write_gpt2(tiny_gpt2, original)
    ours, theirs = (loading.load(path, dtype="float32", pack=False) for path in (original, tiny_gpt2))
    ids = torch.tensor([ours.tokenizer.encode("the sea and the old man")])
    assert torch.equal(ours.model(ids), theirs.model(ids))
    assert ours.tokenizer.eos_id == theirs.tokenizer.eos_id
    assert shell("llmcli convert -m 124M -o saved").code == 0
    texts = [shell(f"llmcli generate -m {model} The -n 8 --dtype float32") for model in ("124M", "saved", tiny_gpt2)]
    assert {(text.code, text.out) for text in texts} == {(0, texts[0].out)}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"n_ctx": None}, "missing or unknown: n_ctx"), ({"n_extra": 1}, "missing or unknown: n_extra")],
)
def test_hparams_are_read_strictly(tiny_gpt2: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_gpt2(tiny_gpt2, tmp_path)
    file = tmp_path / "hparams.json"
    file.write_text(json.dumps({k: v for k, v in (json.loads(file.read_text()) | change).items() if v is not None}))
    with pytest.raises(ModelError, match=words):
        loading.load(tmp_path)
    file.unlink()
    with pytest.raises(ModelError, match="belongs to OpenAI's checkpoint"):
        loading.load(tmp_path)
