"""generate: prompts and records in, texts and documents out, in process and through a real shell."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from llmcli.checkpoints import safetensors
from llmcli.cli import cli
from llmcli.tokenizer import Tokenizer
from tests import conftest

Run = Callable[..., Result]
Shell = Callable[..., conftest.Result]
HOT = ["--temperature", "1.5", "--top-p", "0.98"]


@pytest.fixture
def run(tiny_gpt2: Path) -> Run:
    def invoke(*arguments: str, stdin: str | bytes = b"") -> Result:
        return CliRunner().invoke(cli, ["generate", "-m", str(tiny_gpt2), *arguments], input=stdin)

    return invoke


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def jsonl(*records: Any) -> str:
    return "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)


def test_text_is_the_continuation_and_a_newline(run: Run) -> None:
    result = run("The sea", "-n", "12")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == document(run("The sea", "-n", "12", "--json"))["choices"][0]["text"] + "\n"


def test_every_door_for_the_prompt_is_the_same(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("The sea was calm")
    expected = run("The sea was calm").stdout
    assert run("-p", "The sea was calm").stdout == expected
    assert run("-f", str(tmp_path / "prompt.txt")).stdout == expected
    assert run(stdin="The sea was calm").stdout == expected
    assert run("-", stdin="The sea was calm").stdout == expected
    assert run(" was calm", stdin="The sea").stdout == expected
    assert run("The\\x20sea was calm", "--escape").stdout == expected


def test_the_document_has_openais_fields(run: Run, tiny_gpt2: Path) -> None:
    got = document(run("The sea", "-n", "6", "--json", "--logprobs", "3", "--seed", "9"))
    assert got["schema"] == "llmcli/generation/1"
    assert got["object"] == "text_completion"
    assert got["model"] == str(tiny_gpt2)
    assert got["id"].startswith("cmpl-")
    (choice,) = got["choices"]
    assert choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    tokenizer = Tokenizer.open(tiny_gpt2)
    assert tokenizer.decode(logprobs["token_ids"]) == choice["text"]
    assert all(len(column) == 6 for column in logprobs.values())
    assert all(len(top) == 3 for top in logprobs["top_logprobs"])
    # Greedy: every chosen token is the likeliest of its row.
    assert [max(top.values()) for top in logprobs["top_logprobs"]] == logprobs["token_logprobs"]
    assert logprobs["text_offset"][0] == 0
    prompt = len(tokenizer.encode("The sea"))
    assert got["usage"] == {"prompt_tokens": prompt, "completion_tokens": 6, "total_tokens": prompt + 6}
    assert set(got["timings"]) == {
        "load_ms", "prompt_ms", "predicted_ms", "prompt_per_second", "predicted_per_second"
    }  # fmt: skip
    assert got["timings"]["prompt_ms"] > 0
    assert got["llmcli"]["seed"] == 9
    assert got["llmcli"]["dtype"] == "float32"
    assert len(got["llmcli"]["model_sha256"]) == 64


def test_seeds_and_samples(run: Run) -> None:
    first = document(run("The sea", *HOT, "--num-samples", "3", "--json"))
    texts = [choice["text"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    again = run("The sea", *HOT, "--num-samples", "3")
    assert again.stdout == "".join(text + "\n" for text in texts)
    assert run("The sea", *HOT, "--seed", "1").stdout != run("The sea", *HOT).stdout == texts[0] + "\n"
    drawn = run("The sea", *HOT, "--seed", "random")
    seed = drawn.stderr.split()[-1]
    assert run("The sea", *HOT, "--seed", seed).stdout == drawn.stdout


RECORDS = [
    {"id": "a", "prompt": "The sea", "max_tokens": 9},
    {"prompt": "Where shall we go?", "temperature": 1.2, "seed": 7, "num_samples": 2, "max_tokens": 5},
    {"id": 3, "prompt": "The boy said", "stop": ["e", "the"], "label": "x"},
    {"id": "a", "prompt": "The sea", "max_tokens": 9, "temperature": 1.0, "logprobs": 1},
]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_records_come_back_in_order_whatever_the_batch(run: Run, batch: int) -> None:
    result = run("--jsonl", "-", "--batch-size", str(batch), "-n", "20", stdin=jsonl(*RECORDS))
    assert result.exit_code == 0
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [got["id"] for got in documents][::2] == ["a", 3]
    for got, record in zip(documents, RECORDS, strict=True):
        flags = ["--logprobs", "1"] if "logprobs" in record else []
        flags += [flag for stop in record.get("stop", []) for flag in ("--stop", stop)]
        flags += ["--seed", str(got["llmcli"]["seed"])]
        for name in ("max_tokens", "temperature", "num_samples"):
            flags += [f"--{name.replace('_', '-')}", str(record[name])] if name in record else []
        alone = document(run(str(record["prompt"]), "-n", "20", *flags, "--json"))
        assert [choice["text"] for choice in got["choices"]] == [choice["text"] for choice in alone["choices"]]
        assert got["usage"] == alone["usage"]


BAD = ["no json", "[]", '{"prompt": 5}', '{"text": "x"}', '{"prompt": ""}', '{"prompt": "x", "temprature": 1}',
       '{"prompt": "x", "temperature": -1}', '{"prompt": "x", "temperature": NaN}', '{"prompt": "x", "top_k": "many"}',
       '{"prompt": "x", "max_tokens": 0}', '{"prompt": "x", "stop": 5}', '{"prompt": "x", "stop": [""]}',
       '{"prompt": "\\ud800"}', '{"prompt": "x", "seed": -1}', "[" * 100_000]  # fmt: skip


def test_a_bad_record_is_an_error_in_its_place(run: Run) -> None:
    records = [item for bad in BAD for item in (bad, {"id": 1, "prompt": "The", "max_tokens": 2})]
    result = run("--jsonl", "-", "--batch-size", "4", stdin=jsonl(*records) + "\n")
    assert result.exit_code == 0
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [got.get("error", {}).get("line") for got in documents] == [
        number if number % 2 else None for number in range(1, len(records) + 1)
    ]
    assert result.stderr.startswith(f"{len(BAD)} of {len(records)} records failed; line 1: ")


def test_a_run_in_which_every_record_failed_is_not_a_success(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl(*BAD).encode() + b'{"prompt": "\xff"}\n')
    result = run("--jsonl", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert f"all {len(BAD) + 1} records failed" in result.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(BAD) + 1
    assert run("--jsonl", "-").exit_code == 2
    assert run("--jsonl", str(tmp_path / "none")).exit_code == 5


def test_jsonl_in_and_text_out(run: Run) -> None:
    result = run("--jsonl", "-", "--format", "text", "-n", "4", stdin=jsonl(*RECORDS[:1]))
    assert result.stdout == run("The sea", "-n", "9").stdout


def test_one_prompt_as_a_line(run: Run) -> None:
    result = run("The sea", "--format", "jsonl")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout)["choices"][0]["text"] + "\n" == run("The sea").stdout


def test_stop_strings_are_never_printed(run: Run) -> None:
    whole = run("The sea", "-n", "30").stdout[:-1]
    stop = whole[5:8]
    assert run("The sea", "-n", "30", "--stop", stop).stdout == whole[: whole.index(stop)] + "\n"
    got = document(run("The sea", "-n", "30", "--stop", "zzzz", "--stop", stop, "--json"))
    assert got["choices"][0]["finish_reason"] == "stop"


def test_beams(run: Run) -> None:
    got = document(run("The sea", "-n", "5", "--beams", "4", "--num-samples", "2", "--json", "--logprobs", "0"))
    totals = [sum(choice["logprobs"]["token_logprobs"]) for choice in got["choices"]]
    greedy = document(run("The sea", "-n", "5", "--json", "--logprobs", "0"))["choices"][0]["logprobs"]
    assert totals[0] >= totals[1]
    assert totals[0] >= sum(greedy["token_logprobs"])


def test_context_overflow(run: Run) -> None:
    long = "The sea was calm and far. " * 40
    result = run(long)
    assert result.exit_code == 2
    assert "64" in result.stderr
    assert "--ctx-overflow" in result.stderr
    got = document(run(long, "--ctx-overflow", "truncate", "-n", "10", "--json"))
    assert got["usage"] == {"prompt_tokens": 54, "completion_tokens": 10, "total_tokens": 64}
    got = document(run(long, "--ctx-overflow", "slide", "-n", "100", "--json"))
    assert got["usage"]["completion_tokens"] == 100 or got["choices"][0]["finish_reason"] == "stop"
    assert got["usage"]["prompt_tokens"] == 32
    got = document(run("The sea", "-n", "500", "--ctx-size", "20", "--json"))
    assert got["usage"]["total_tokens"] == 20
    assert got["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "--temperature", "-1"],
        ["x", "--temperature", "nan"],
        ["x", "--top-p", "0"],
        ["x", "--top-k", "-3"],
        ["x", "--min-p", "2"],
        ["x", "--repetition-penalty", "0"],
        ["x", "-n", "0"],
        ["x", "-n", "many"],
        ["x", "--num-samples", "0"],
        ["x", "--seed", "-1"],
        ["x", "--stop", ""],
        ["x", "--ctx-size", "65"],
        ["x", "--beams", "3", "--temperature", "1"],
        ["x", "--beams", "3", "--num-samples", "4"],
        ["x", "--beams", "3", "--ctx-overflow", "slide"],
        ["x", "--logprobs", "2"],
        ["x", "--jsonl", "-"],
        ["--jsonl", "-", "--json"],
        ["x", "-o", "/nonexistent/file"],
        [""],
    ],
)
def test_what_makes_no_sense_is_a_usage_error(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_invalid_utf8_names_its_offset(run: Run) -> None:
    result = run(stdin=b"The \xff sea")
    assert result.exit_code == 2
    assert "offset 4" in result.stderr
    assert run("--encoding-errors", "replace", stdin=b"The \xff sea").stdout == run("The \ufffd sea").stdout


@pytest.mark.parametrize(("value", "words"), [(math.nan, "NaN"), (1e37, "logits are not finite")])
def test_weights_that_spoil_the_logits_are_a_model_error(
    tiny_gpt2: Path, tmp_path: Path, value: float, words: str
) -> None:
    model = tmp_path / "broken"
    shutil.copytree(tiny_gpt2, model)
    tensors = {name: tensor.clone() for name, tensor in safetensors.open(model).items()}
    tensors["transformer.ln_f.weight"].fill_(value)
    tensors["transformer.wte.weight"] *= 1e4  # finite weights, whose products are not
    (model / "model.safetensors").unlink()
    safetensors.save(model / "model.safetensors", tensors)
    result = CliRunner().invoke(cli, ["generate", "-m", str(model), "The sea", "-o", str(tmp_path / "out")])
    assert result.exit_code == 5
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_verbose_prints_figures_on_stderr_and_quiet_nothing(run: Run) -> None:
    loud = run("The sea", "-v")
    assert "tokens in" in loud.stderr
    assert loud.stdout == run("The sea", "-q").stdout
    assert run("--jsonl", "-", "-q", stdin=jsonl("bad", RECORDS[0])).stderr == ""


def test_threads_do_not_change_the_text(run: Run) -> None:
    before = torch.get_num_threads()
    try:
        assert run("The sea", *HOT, "-t", "1").stdout == run("The sea", *HOT, "-t", "2").stdout
    finally:
        torch.set_num_threads(before)


def test_pipes(shell: Shell, tiny_gpt2: Path) -> None:
    result = shell(f"printf 'The sea' | llmcli generate -m {tiny_gpt2} -n 8 | tee copy | wc -l; cat copy")
    assert (result.code, result.err) == (0, "")
    direct = shell(f"llmcli generate -m {tiny_gpt2} 'The sea' -n 8 </dev/null -o out; cat out")
    assert result.out.partition("\n")[2] == direct.out
    closed = shell(f'yes \'{{"prompt": "The", "max_tokens": 1}}\' | llmcli generate -m {tiny_gpt2} --jsonl - | head -1')
    assert closed.code == 141
    assert (closed.out.count("\n"), closed.err) == (1, "")


def test_an_endless_prompt_is_refused(shell: Shell, tiny_gpt2: Path) -> None:
    for prompt in ("-f -", "'The sea'"):
        result = shell(f"yes | llmcli generate -m {tiny_gpt2} {prompt}; exit ${{PIPESTATUS[1]}}")
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "at most 16.0 MB" in result.err


def test_a_full_disk_is_a_resource_error(shell: Shell, tiny_gpt2: Path) -> None:
    result = shell(f"llmcli generate -m {tiny_gpt2} 'The sea' > /dev/full")
    assert result.code == 6
    assert "no space left" in result.err


def endless(folder: Path, source: Path) -> Path:
    """A model whose end-of-text token never comes, so that a slide goes on for ever."""
    model = folder / "endless"
    shutil.copytree(source, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": 319}))
    weights = {name: tensor.clone() for name, tensor in safetensors.open(model).items()}
    head, bias = weights["transformer.wte.weight"], weights["transformer.ln_f.bias"]
    weights["transformer.ln_f.weight"][0], bias[0] = 0, 100  # the first channel is always 100,
    head[:, 0] = 0
    head[319, 0] = -1  # and speaks against one token only
    safetensors.save(model / "model.safetensors", weights)
    return model


def begin(environment: dict[str, str], folder: Path, *arguments: str, **settings: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["llmcli", "generate", "-n", "10000000", "--ctx-overflow", "slide", *HOT, *arguments],
        cwd=folder, env=environment, executable=shutil.which("llmcli", path=environment["PATH"]),
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, **settings,
    )  # fmt: skip


def test_an_interrupt_ends_text_with_a_newline(
    shell_environment: dict[str, str], tmp_path: Path, tiny_gpt2: Path
) -> None:
    model = endless(tmp_path, tiny_gpt2)
    process = begin(shell_environment, tmp_path, "-m", str(model), "The sea", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1)  # it streams: a byte comes long before the end
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"interrupted\n")
    assert out.endswith(b"\n")


def test_an_interrupt_closes_the_document(shell_environment: dict[str, str], tmp_path: Path, tiny_gpt2: Path) -> None:
    model = endless(tmp_path, tiny_gpt2)
    process = begin(shell_environment, tmp_path, "-m", str(model), "The sea", "--json", "-o", "out.json")
    wait_for(lambda: any(path.name.startswith(".out.json") for path in tmp_path.iterdir()))
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"interrupted\n")
    got = json.loads((tmp_path / "out.json").read_text())
    assert got["choices"][0]["finish_reason"] == "interrupt"
    assert got["usage"]["completion_tokens"] > 0


def test_an_interrupt_closes_the_batch_and_keeps_the_lines(
    shell_environment: dict[str, str], tmp_path: Path, tiny_gpt2: Path
) -> None:
    model = endless(tmp_path, tiny_gpt2)
    records = [{"id": 0, "prompt": "The", "max_tokens": 1}, *({"id": n, "prompt": "The sea"} for n in range(1, 9))]
    (tmp_path / "in.jsonl").write_text(jsonl(*records))
    process = begin(
        shell_environment, tmp_path, "-m", str(model), "--jsonl", "in.jsonl", "--batch-size", "2", "-o", "out.jsonl"
    )
    wait_for(lambda: any(path.name.startswith(".out.jsonl") for path in tmp_path.iterdir()))
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"interrupted\n")
    documents = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [got["choices"][0]["finish_reason"] for got in documents] == ["length", "interrupt", "interrupt"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_text_that_was_cut_short_leaves_no_file(
    shell_environment: dict[str, str], tmp_path: Path, tiny_gpt2: Path, number: signal.Signals, code: int
) -> None:
    model = endless(tmp_path, tiny_gpt2)
    process = begin(shell_environment, tmp_path, "-m", str(model), "The sea", "-o", "out.txt")
    wait_for(lambda: any(path.name.startswith(".out.txt") for path in tmp_path.iterdir()))
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert [path.name for path in tmp_path.iterdir()] == ["endless"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_figures_appear_on_a_terminal(
    shell_environment: dict[str, str], tiny_gpt2: Path, terminal: tuple[int, int]
) -> None:
    process = subprocess.Popen(
        ["llmcli", "generate", "-m", str(tiny_gpt2), "The sea", "-n", "4"],
        executable=shutil.which("llmcli", path=shell_environment["PATH"]),
        env=shell_environment, stdin=terminal[1], stdout=subprocess.PIPE, stderr=terminal[1],
    )  # fmt: skip
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"tokens in" not in out
    assert b"wrote 4" in os.read(terminal[0], 4096)


def test_the_embedded_model_writes_words_without_being_named(shell: Shell) -> None:
    line = "llmcli generate 'Once upon a time' -n 40 --offline"
    result = shell(f"{line} </dev/null; {line} --json </dev/null")
    assert (result.code, result.err) == (0, "")
    text, _, rest = result.out.partition("\n{\n")
    got = json.loads("{" + rest)
    assert got["model"] == "default"
    assert got["choices"][0]["text"] == text
    words = text.split()
    assert sum(word.strip(".,;!?\"'‘’“”—").isalpha() for word in words) > 0.8 * len(words) > 10
