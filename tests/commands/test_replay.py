"""generate --receipt and replay: the same tokens, the first that differs, hashes, versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcli import loading
from tests.conftest import Result

Run = Callable[..., Result]
PROMPT = "'The sea was calm' -n 12"


@pytest.fixture
def make(invoke: Run, tiny_gpt2: Path, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    def run(flags: str = "") -> dict[str, Any]:
        result = invoke(f"generate -m {tiny_gpt2} {PROMPT} --receipt run.json {flags}")
        assert result.code == 0, result.err
        return json.loads((tmp_path / "run.json").read_text())

    return run


def test_in_a_real_shell(shell: Run, tiny_gpt2: Path, tmp_path: Path) -> None:
    result = shell(f"llmcli generate -m {tiny_gpt2} {PROMPT} --receipt run.json > text && llmcli replay -t 1 run.json")
    assert (result.code, result.err) == (0, "")
    assert result.out == "identical: 12 tokens in 1 samples; log-probabilities differ by 0 at most\n"
    receipt = json.loads((tmp_path / "run.json").read_text())
    tokenizer = loading.load(tiny_gpt2).tokenizer
    assert tokenizer.decode(receipt["samples"][0]["ids"]) + "\n" == (tmp_path / "text").read_text()


@pytest.mark.parametrize(
    "flags",
    ["--json", "--temperature 1.5 --top-p 0.9 --seed 7 --num-samples 3", "--stop e --repetition-penalty 1.3",
     "--beams 3", "-n 90 --ctx-overflow slide -c 30", "--dtype bfloat16 --logprobs 2 --json", "--quantize int4",
     "--cache-dtype int8"],
)  # fmt: skip
def test_every_kind_of_run_replays(make: Any, invoke: Run, flags: str) -> None:
    receipt = make(flags)
    assert receipt["schema"] == "llmcli/receipt/1"
    assert all(len(s["ids"]) == len(s["logprobs"]) > 0 for s in receipt["samples"])
    got = json.loads(invoke("replay run.json --json").out)
    assert (got["verdict"], got["divergence"], got["logprob_difference"]) == ("identical", None, 0)
    assert got["n_tokens"] == sum(len(s["ids"]) for s in receipt["samples"])


def test_the_text_is_the_same_with_a_receipt(make: Any, invoke: Run, tiny_gpt2: Path) -> None:
    plain = json.loads(invoke(f"generate -m {tiny_gpt2} {PROMPT} --json").out)
    noted = json.loads(invoke(f"generate -m {tiny_gpt2} {PROMPT} --json --receipt run.json").out)
    assert noted["choices"] == plain["choices"]


@torch.inference_mode()
def test_the_first_divergent_token_and_its_gap(make: Any, invoke: Run, tiny_gpt2: Path, tmp_path: Path) -> None:
    receipt = make()
    ids, found = receipt["prompt_ids"], receipt["samples"][0]["ids"]
    wrong = (found[5] + 1) % 320
    receipt["samples"][0]["ids"] = [*found[:5], wrong, *found[6:]]
    (tmp_path / "run.json").write_text(json.dumps(receipt))
    result = invoke("replay run.json --json")
    assert result.code == 3
    loaded = loading.load(tiny_gpt2)
    logits = loaded.model(torch.tensor([ids + found[:5]]))[0, -1]
    divergence = json.loads(result.out)["divergence"]
    assert {**divergence, "gap": None} == {
        "sample": 0,
        "position": 5,
        "recorded": wrong,
        "found": found[5],
        "gap": None,
    }
    assert divergence["gap"] == pytest.approx(float(logits[found[5]] - logits[wrong]), abs=1e-4)
    assert result.err.startswith(f"error: sample 0, token 5: expected {wrong} ")
    assert f"got {found[5]} {loaded.tokenizer.token_bytes(found[5])!r}; the logit of the latter is +" in result.err


def test_a_shorter_sample_diverges_at_its_end(make: Any, invoke: Run, tmp_path: Path) -> None:
    receipt = make()
    for name in ("ids", "logprobs"):
        del receipt["samples"][0][name][7:]
    (tmp_path / "run.json").write_text(json.dumps(receipt))
    result = invoke("replay run.json")
    assert (result.code, result.out) == (3, "")
    assert "sample 0, token 7: expected the end, got " in result.err


def test_other_weights_are_exit_5(make: Any, invoke: Run, tiny_gpt2: Path, tmp_path: Path) -> None:
    make()
    shutil.copytree(tiny_gpt2, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["transformer.ln_f.bias"][0] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors")
    result = invoke("replay run.json -m other")
    assert (result.code, result.out) == (5, "")
    assert result.err.startswith("error: weights: expected SHA-256 ")


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"schema": "llmcli/receipt/0"}, 2, "the schema llmcli/receipt/1, got 'llmcli/receipt/0'"),
        ({"schema": "llmcli/generation/1"}, 2, "got 'llmcli/generation/1'"),
        ({"tokenizer_sha256": "0"}, 5, "tokenizer: expected SHA-256 0"),
        ({"prompt": "The sky"}, 5, "prompt: expected SHA-256"),
        ({"prompt_ids": [1, 2]}, 5, "prompt_ids are not those of its prompt"),
        ({"samples": [{"ids": [1], "logprobs": []}]}, 2, 'expected "samples" with as many'),
        ({"samples": [{"ids": [1], "logprobs": ["a"]}]}, 2, 'expected "samples" with as many'),
        ({"samples": []}, 2, "expected 1 samples, got 0"),
        ({"versions": ["2.0"]}, 2, 'expected "versions" to be a dict'),
        ({"model": 3}, 2, 'expected "model" to be a str'),
        ({"policy": {"width": 3}}, 2, "fields of a policy, got width"),
        ({"policy": {"context": "x"}}, 2, "policy: context cannot be 'x'"),
        ({"policy": {"context": 10**9}}, 2, "a context of 1000000000; this model has 64"),
        ({"policy": {"context": 64, "overflow": "burst"}}, 2, "policy: overflow cannot be 'burst'"),
        ({"policy": {"context": 64, "beams": 10**9}}, 2, "policy: beams cannot be 1000000000"),
        ({"policy": {"context": 64, "length_penalty": None}}, 2, "policy: length_penalty cannot be None"),
        ({"request": {"colour": 3}}, 2, "settings of a request, got colour"),
        ({"llmcli": {"dtype": "int3"}}, 2, "got the dtype 'int3'"),
        ({"llmcli": {"dtype": "float32", "quantized": "int3"}}, 2, "got quantized 'int3'"),
    ],
)  # fmt: skip
def test_receipts_that_were_changed(
    make: Any, invoke: Run, tmp_path: Path, change: dict[str, Any], code: int, words: str
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**make(), **change}))
    result = invoke("replay run.json")
    assert (result.code, result.out) == (code, "")
    assert words in result.err


def test_what_runs_otherwise_is_named(make: Any, invoke: Run, tmp_path: Path) -> None:
    receipt = make()
    receipt["versions"] = {"torch": "2.0", "python": "3.8"}
    receipt["llmcli"] |= {"version": "0.0.1", "threads": 77}
    (tmp_path / "run.json").write_text(json.dumps(receipt))
    result = invoke("replay run.json --json")
    assert result.code == 0
    assert {name: was for name, (was, _) in json.loads(result.out)["changed"].items()} == {
        "torch": "2.0", "python": "3.8", "version": "0.0.1", "threads": 77
    }  # fmt: skip
    assert result.err.startswith("although ")
    assert f"torch was 2.0, is {torch.__version__}; " in result.err
    assert "threads" not in result.err
    receipt["samples"][0]["ids"][3] ^= 1
    (tmp_path / "run.json").write_text(json.dumps(receipt))
    result = invoke("replay run.json")
    assert (result.code, "; threads was 77, is " in result.err, "torch was 2.0" in result.err) == (3, True, True)


def test_a_changed_text_hash_is_exit_5(make: Any, invoke: Run, tmp_path: Path) -> None:
    receipt = make()
    receipt["samples"][0]["text_sha256"] = "0"
    (tmp_path / "run.json").write_text(json.dumps(receipt))
    assert "text of sample 0: expected SHA-256 0" in invoke("replay run.json").err


def test_what_is_no_receipt(invoke: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("The sea")
    assert invoke("replay text").code == 2
    assert invoke("replay nowhere").code == 5
    assert invoke("generate --jsonl text --resume -o out --receipt run.json").code == 2
    assert not (tmp_path / "run.json").exists()


def test_a_receipt_for_each_record(invoke: Run, tiny_gpt2: Path, tmp_path: Path) -> None:
    prompts = ["The sea", "", "The boy said", "We"]
    lines = [json.dumps({"id": n, "prompt": prompt, "max_tokens": 4 + n}) for n, prompt in enumerate(prompts)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    command = f"generate -m {tiny_gpt2} --jsonl in.jsonl --temperature 1 --batch-size 2"
    plain = [json.loads(line) for line in invoke(command).out.splitlines()]
    noted = [json.loads(line) for line in invoke(f"{command} --receipt runs.jsonl").out.splitlines()]
    assert [one.get("choices") for one in noted] == [one.get("choices") for one in plain]
    receipts = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [receipt["prompt"] for receipt in receipts] == ["The sea", "The boy said", "We"]
    assert [receipt["request"]["seed"] for receipt in receipts] == [plain[n]["llmcli"]["seed"] for n in (0, 2, 3)]
    done = invoke("replay runs.jsonl -t 1")
    assert done.out == "identical: 17 tokens in 3 samples of 3 receipts; log-probabilities differ by 0 at most\n"
    receipts[1]["samples"][0]["ids"][2] ^= 1
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, receipts)))
    done = invoke("replay runs.jsonl --json")
    assert done.code == 3
    assert done.err.startswith("error: receipt 2, sample 0, token 2: expected ")
    assert json.loads(done.out)["n_receipts"] == 2
    receipts[2]["llmcli"]["threads"] = 99
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, receipts)))
    assert invoke("replay runs.jsonl").code == 2
    (tmp_path / "runs.jsonl").write_text("{}\n{")
    assert invoke("replay runs.jsonl").code == 2
