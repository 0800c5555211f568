"""--lookup and --draft-model: the same bytes, counted guesses, clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmcli.checkpoints import safetensors
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
def test_a_pipe_of_records_and_its_counts(shell: Shell, tiny_gpt2: Path) -> None:
    line = f"llmcli generate -m {tiny_gpt2} --jsonl - -n 50"
    result = shell(
        """printf '{"prompt":"The sea"}\\n{"prompt":"ship ship ship"}\\n{"prompt":"a","num_samples":2}\\n' > in.jsonl
        """ + f"{line} <in.jsonl >plain; {line} --draft-model {tiny_gpt2} <in.jsonl >ahead; cat plain ahead"
    )  # fmt: skip
    documents = [json.loads(row) for row in result.out.splitlines()]
    plain, ahead = documents[:3], documents[3:]
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
