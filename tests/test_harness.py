"""llmcli in the lm-eval harness beside the harness's own model class, on one random checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmcli.errors import InputError
from tests.tiny import TEXT

pytest.importorskip("lm_eval.models.huggingface")
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from llmcli import harness

PAIRS = [("The sea was", " calm"), ("The sea was ", "calm, and"), ("", "The boy"), (TEXT, " far"), ("A", "\nB é")]


def requests(kind: str, rows: list[tuple[Any, ...]]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=row, idx=n) for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def both(tiny_gpt2: Path) -> tuple[Any, Any]:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tiny_gpt2 / "tokenizer.json"), eos_token="<|endoftext|>")
    peer = get_model("hf")(pretrained=str(tiny_gpt2), tokenizer=tokenizer, device="cpu", dtype="float32", batch_size=1)
    return get_model("llmcli").create_from_arg_string(f"model={tiny_gpt2}", {"batch_size": 3}), peer


def test_loglikelihood(both: tuple[Any, Any]) -> None:
    ours, theirs = (model.loglikelihood(requests("loglikelihood", PAIRS)) for model in both)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=1e-4)


def test_rolling(both: tuple[Any, Any]) -> None:
    texts = [(TEXT * 3,), ("The sea",), (TEXT[:130],)]
    ours, theirs = (model.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) for model in both)
    assert ours == pytest.approx([value[0] if isinstance(value, tuple) else value for value in theirs], rel=1e-4)


def test_generation(both: tuple[Any, Any]) -> None:
    rows = [("The sea was", {"until": ["e"], "max_gen_toks": 12}), ("A", {"until": [], "max_gen_toks": 5})]
    ours, theirs = (model.generate_until(requests("generate_until", rows)) for model in both)
    assert ours == theirs


def test_settings() -> None:
    assert harness.settings({"until": "\n", "do_sample": False, "temperature": 0.7})["temperature"] == 0
    sampled = harness.settings({"do_sample": True, "temperature": 0.7, "top_p": 0.9})
    assert (sampled["temperature"], sampled["top_p"], sampled["max_tokens"]) == (0.7, 0.9, 256)
    with pytest.raises(InputError, match="num_beams 1"):
        harness.settings({"num_beams": 4})
