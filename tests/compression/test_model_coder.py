"""Ids under a model: any bytes, any window, the bits that the model says, and what a file refuses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmcli import compression, loading, scoring
from llmcli.compression import Header, model_coder
from llmcli.errors import InputError, ModelError, ResourceError
from llmcli.ops import registry
from llmcli.scoring import Sliding
from tests.marks import kernels_only
from tests.tiny import TEXT


@pytest.fixture(scope="module")
def tiny(tiny_gpt2: Path) -> loading.Loaded:
    return loading.load(tiny_gpt2)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"The sea\xe2\x80 was\xff\xfe calm", bytes(range(256)), "naïve 漢字 🙂".encode(),
             b"a <|endoftext|> b", b"\xed\xa0\x80 a surrogate in bytes", b"\0\r\n\r"],
)  # fmt: skip
def test_any_bytes_have_ids(tiny: loading.Loaded, data: bytes) -> None:
    assert compression.from_ids(compression.to_ids(data, tiny.tokenizer), tiny.tokenizer) == data


@given(data=st.binary(max_size=60))
def test_random_bytes_have_ids(tiny: loading.Loaded, data: bytes) -> None:
    assert compression.from_ids(compression.to_ids(data, tiny.tokenizer), tiny.tokenizer) == data


@kernels_only
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("context", "stride"), [(64, 32), (64, 64), (9, 4), (1, 1)])
def test_ids_come_back_and_take_the_reported_bits(tiny_gpt2: Path, dtype: str, context: int, stride: int) -> None:
    loaded, rule = loading.load(tiny_gpt2, dtype=dtype), Sliding(context, stride)
    ids = loaded.tokenizer.encode(TEXT)
    body, bits = compression.encode(loaded.model, ids, rule, 320, batch_size=3)
    assert compression.encode(loaded.model, ids, rule, 320, batch_size=1)[0] == body
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert compression.decode(loaded.model, body, len(ids), rule, 320) == ids
    finally:
        torch.set_num_threads(threads)
    doc = scoring.encode("text", TEXT, loaded.tokenizer, rule)
    nll = scoring.total(doc, scoring.score(loaded.model, [doc], rule)[0]).nll
    # Whole distributions come from logits in the model's own precision.
    rounding = 1e-6 if dtype == "float32" else 2e-4
    assert bits == pytest.approx(nll / math.log(2) + math.log2(320), rel=rounding)
    assert abs(8 * len(body) - bits) <= 0.001 * bits + 16


@kernels_only
@pytest.mark.parametrize("n_tokens", [0, 1, 2])
def test_next_to_nothing(tiny: loading.Loaded, n_tokens: int) -> None:
    ids = tiny.tokenizer.encode(TEXT)[:n_tokens]
    body, _ = compression.encode(tiny.model, ids, Sliding(8, 4), 320)
    assert compression.decode(tiny.model, body, n_tokens, Sliding(8, 4), 320) == ids


def test_frequencies_are_positive_integers_in_proportion() -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log()
    cumulative = model_coder.frequencies(logprobs)[0]
    assert cumulative.tolist() == [0, 2**31 + 1, 2**31 + 2**30 + 2, 2**32 + 3, 2**32 + 4]
    assert cumulative.dtype == np.int64
    with pytest.raises(ModelError, match="not finite"):
        model_coder.frequencies(torch.full((1, 4), math.nan))


HEADER = Header(b"m" * 8, b"d" * 8, "bfloat16", "int4", "avx512bf16", 1024, 512, 10**9)


def test_the_file_holds_its_header() -> None:
    packed = compression.pack(HEADER, b"body")
    assert compression.unpack(packed) == (HEADER, b"body")
    assert len(packed) - 4 <= 46


@pytest.mark.parametrize(
    ("file", "error", "words"),
    [
        (b"", InputError, "expected a file that 'llmcli compress' wrote"),
        (b"PK\x03\x04 zip", InputError, "begins with b'PK"),
        (b"LLMZ\x09" + b"0" * 60, InputError, "expected version 1 of the format, got 09"),
        (compression.pack(HEADER, b"")[:30], ModelError, "header ends early"),
        (compression.pack(HEADER, b"")[:21] + b"\x07" * 40, ModelError, "makes no sense"),
    ],
)
def test_files_that_cannot_be_read(file: bytes, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        compression.unpack(file)


def test_without_kernels_there_is_no_promise(tiny: loading.Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "kernels", None)
    with pytest.raises(ResourceError, match="same bits in any batch"):
        compression.check_exact(tiny)
