"""llmcli in the lm-eval harness beside the harness's own model class, on one random checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcli.errors import InputError
from tests.conftest import Result
from tests.tiny import TEXT

PAIRS = [("The sea was", " calm"), ("The sea was ", "calm, and"), ("", "The boy"), (TEXT, " far"), ("A", "\nB é")]


TASK = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {cache_dir: CACHE, data_files: {validation: questions.jsonl}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


# The harness takes seconds to import: only the process that runs these tests pays for it.
def requests(kind: str, rows: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=row, idx=n) for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def both(tiny_gpt2: Path) -> tuple[Any, Any]:
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    from llmcli import harness

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tiny_gpt2 / "tokenizer.json"), eos_token="<|endoftext|>")
    peer = HFLM(pretrained=str(tiny_gpt2), tokenizer=tokenizer, device="cpu", dtype="float32", batch_size=1)
    registered = get_model("llmcli")
    assert registered is harness.LlmcliModel
    return registered.create_from_arg_string(f"model={tiny_gpt2}", {"batch_size": 3}), peer


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


@pytest.mark.slow
def test_a_task_of_the_harness(
    invoke: Callable[..., Result], tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcli import harness

    rows = [
        {"prompt": "The sea was", "choices": [" calm", " far and wide"], "label": 0},
        {"prompt": "The boy", "choices": [" said", " é", "."], "label": 2},
        {"prompt": TEXT[:60], "choices": [" and", " the old king"], "label": 1},
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(TASK.replace("CACHE", str(tmp_path / "cache")))
    line = f"--model llmcli --model_args model={tiny_gpt2} --include_path . --tasks tiny_choices --output_path found"
    monkeypatch.setattr("sys.argv", ["harness", *line.split()])
    harness.run()
    (found,) = tmp_path.glob("found/**/results_*.json")
    theirs = json.loads(found.read_text())["results"]["tiny_choices"]
    ours = json.loads(invoke(f"score -m {tiny_gpt2} --choices questions.jsonl --json").out)["accuracy"]
    assert theirs["acc,none"] == ours["raw"]["value"]
    assert theirs["acc_norm,none"] == ours["byte"]["value"]


def test_settings() -> None:
    from llmcli import harness

    assert harness.settings({"until": "\n", "do_sample": False, "temperature": 0.7})["temperature"] == 0
    sampled = harness.settings({"do_sample": True, "temperature": 0.7, "top_p": 0.9})
    assert (sampled["temperature"], sampled["top_p"], sampled["max_tokens"]) == (0.7, 0.9, 256)
    with pytest.raises(InputError, match="num_beams 1"):
        harness.settings({"num_beams": 4})
