"""--lookup, --draft-model, --prompt-cache: the same bytes, counted guesses, clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmcli.checkpoints import safetensors
from llmcli.errors import ModelError
from llmcli.generation.prompt_cache import digest, facts, read
from llmcli.loading import load
from llmcli.models.lstm import LSTM, LSTMConfig
from tests.conftest import Result
from tests.marks import kernels_only
from tests.tiny import TINY, write_checkpoint, write_tokenizer

Shell = Callable[..., Result]
DETAILS = "completion_tokens_details"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another vocabulary."""
    directory = tmp_path_factory.mktemp("other")
    write_checkpoint(directory, replace(TINY, vocab_size=300))
    return directory


@kernels_only
@pytest.mark.parametrize("how", ["", "--temperature 0.9", "--stop e --receipt {}.json", "--ctx-overflow slide"])
def test_the_bytes_are_those_of_plain_decoding(invoke: Shell, tiny_gpt2: Path, tmp_path: Path, how: str) -> None:
    line = f"generate -m {tiny_gpt2} 'The sea the sea the sea' -n 100 "
    texts = []
    for name, flags in (("plain", ""), ("lookup", "--lookup 6"), ("draft", f"--draft-model {tiny_gpt2}")):
        result = invoke(f"{line} {flags} {how.format(name)}")
        assert result.code == 0, result.err
        texts.append(result.out)
    assert texts[0] == texts[1] == texts[2]
    if "receipt" in how:
        receipts = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "lookup", "draft")]
        assert receipts[0] == receipts[1] == receipts[2]
        assert invoke("replay lookup.json").code == 0


@kernels_only
def test_a_pipe_of_records_and_its_counts(shell: Shell, invoke: Shell, tiny_gpt2: Path) -> None:
    rows = [{"prompt": "The sea"}, {"prompt": "ship ship ship"}, {"prompt": "a", "num_samples": 2}]
    records = "".join(json.dumps(row) + "\n" for row in rows).encode()
    line = f"generate -m {tiny_gpt2} --jsonl - -n 50"
    result = shell(f"cat | llmcli {line} --draft-model {tiny_gpt2} | cat", stdin=records)
    plain, ahead = (
        [json.loads(row) for row in text.splitlines()] for text in (invoke(line, stdin=records).out, result.out)
    )
    for a, b in zip(plain[:2], ahead[:2], strict=True):
        assert a["choices"] == b["choices"]
        counts = b["usage"].pop(DETAILS)
        assert a["usage"] == b["usage"]
        # The model drafts for itself: nothing is rejected but what follows the end.
        assert counts["accepted_prediction_tokens"] > 20
        assert counts["rejected_prediction_tokens"] < 8
    assert "error" not in plain[2]
    assert "num_samples: expected 1" in ahead[2]["error"]["message"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--lookup 3 --draft-model default", "got both"),
        ("--lookup 3 --beams 2", "--beams 1"),
        ("--draft-model {other}", "expected the vocabulary"),
        ("--lookup 3 --num-samples 2", "num_samples: expected 1"),
        ("--lookup 0", "--lookup"),
        ("--prompt-cache p --beams 2", "got --beams"),
    ],
)
def test_what_does_not_fit_is_refused(invoke: Shell, tiny_gpt2: Path, other: Path, flags: str, said: str) -> None:
    result = invoke(f"generate -m {tiny_gpt2} x -n 4 {flags.format(other=other)}")
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert result.err.count("\n") == 1


def test_many_records_at_a_time_are_refused(invoke: Shell, tiny_gpt2: Path) -> None:
    result = invoke(f"generate -m {tiny_gpt2} --jsonl - --batch-size 2 --lookup 3", stdin=b'{"prompt":"x"}\n')
    assert (result.code, result.out) == (2, "")
    assert "--batch-size 1" in result.err


def test_a_model_that_cannot_forget_is_refused(invoke: Shell, tmp_path: Path) -> None:
    model = LSTM(LSTMConfig(vocab_size=320, n_embd=16, n_layer=1)).initialize()
    (tmp_path / "config.json").write_text(json.dumps(model.config.describe()))
    safetensors.save(tmp_path / "model.safetensors", model.checkpoint())
    write_tokenizer(tmp_path)
    result = invoke(f"generate -m {tmp_path} x --lookup 3")
    assert (result.code, result.out) == (2, "")
    assert "(LSTM)" in result.err


@kernels_only
def test_a_prompt_is_read_from_where_it_parts_from_the_file(shell: Shell, invoke: Shell, tiny_gpt2: Path) -> None:
    line = f"generate -m {tiny_gpt2} -n 20 --json"
    result = shell(f"llmcli {line} 'The sea was calm' --prompt-cache p; ls -A >&2; cp p p.1")
    first = json.loads(result.out)
    assert result.err == "p\n"
    second = json.loads(invoke(f"{line} 'The sea was' --prompt-cache p").out)
    assert shell("cmp p p.1").code == 0
    ship = f"{line} 'The sea and the ship' --temperature 1"
    third = json.loads(invoke(f"{ship} --lookup 3 --prompt-cache p").out)
    assert shell("cmp -s p p.1").code == 1
    second_plain, third_plain = json.loads(invoke(f"{line} 'The sea was'").out), json.loads(invoke(ship).out)
    assert (second["choices"], third["choices"]) == (second_plain["choices"], third_plain["choices"])
    read = [document["usage"]["prompt_tokens_details"]["cached_tokens"] for document in (first, second, third)]
    assert read[0] == 0
    assert read[1] == second["usage"]["prompt_tokens"] - 1
    assert 0 < read[2] < third["usage"]["prompt_tokens"] - 1
    assert DETAILS in third["usage"]


@kernels_only
@pytest.mark.parametrize(
    "how", ["", "--num-samples 3 --temperature 1", "--ctx-overflow slide --num-samples 2", "--cache-dtype int8"]
)
def test_a_prompt_cache_changes_no_byte(invoke: Shell, tiny_gpt2: Path, how: str) -> None:
    line = f"generate -m {tiny_gpt2} 'The sea was calm, and the' -n 70 {how}"
    plain = invoke(line)
    for _ in range(2):
        cached = invoke(line + " --prompt-cache cache")
        assert (cached.code, cached.out) == (0, plain.out)


def test_a_file_of_something_else_is_refused_and_kept(
    invoke: Shell, tiny_gpt2: Path, other: Path, tmp_path: Path
) -> None:
    line = f"generate -m {tiny_gpt2} 'The sea was calm' -n 4 --prompt-cache cache"
    assert invoke(line).code == 0
    cache = tmp_path / "cache"
    whole = cache.read_bytes()
    for name, flags in (
        ("model_sha256", f"-m {other}"),
        ("dtype", "--dtype bfloat16"),
        ("quantized", "--quantize int8"),
        ("cache_dtype", "--cache-dtype int8"),
    ):
        result = invoke(f"{line} {flags}")
        assert (result.code, result.out) == (5, "")
        assert f"prompt cache of {name} " in result.err
        assert cache.read_bytes() == whole
    header = int.from_bytes(whole[:8], "little")
    flipped = bytearray(whole)
    flipped[8 + header + 100] ^= 1
    for damaged in (bytes(flipped), whole[:-1], whole[: 8 + header // 2], b"The sea", b""):
        cache.write_bytes(damaged)
        result = invoke(line)
        assert (result.code, result.out) == (5, "")
        assert result.err.count("\n") == 1
        assert cache.read_bytes() == damaged


def test_a_cache_of_another_size_is_refused(tiny_gpt2: Path, tmp_path: Path) -> None:
    loaded = load(tiny_gpt2)
    expected = facts(loaded)
    for ids, cache in (
        (torch.tensor([1, 2]), torch.zeros(2, 1, 4, 1, 7, dtype=torch.uint8)),
        (torch.arange(10**4), torch.zeros(2, 1, 4, 1, 8, dtype=torch.uint8)),
        (torch.tensor([], dtype=torch.int64), torch.zeros(0, dtype=torch.uint8)),
        (torch.tensor([1.0]), torch.zeros(1, dtype=torch.uint8)),
    ):
        tensors = {"ids": ids, "cache": cache}
        safetensors.save(tmp_path / "cache", tensors, {**expected, "sha256": digest(tensors)})
        with pytest.raises(ModelError, match="damaged"):
            read(tmp_path / "cache", expected, loaded.model)


def test_a_place_that_cannot_be_written_is_an_error_before_any_text(invoke: Shell, tiny_gpt2: Path) -> None:
    result = invoke(f"generate -m {tiny_gpt2} x -n 4 --prompt-cache missing/cache")
    assert (result.code, result.out) == (6, "")
    assert "cannot write missing/cache" in result.err
