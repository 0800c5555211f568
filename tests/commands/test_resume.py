"""generate --jsonl --resume: whatever stopped the run before, the file ends as if nothing had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result
from tests.marks import kernels_only

Run = Callable[..., Result]
RECORDS: list[Any] = [
    {"id": "a", "prompt": "The sea", "max_tokens": 7},
    {"prompt": "Where shall we go?", "temperature": 1.2, "seed": 7, "num_samples": 2},
    {"id": "bad", "prompt": 3},
    {"id": None, "prompt": "The boy said", "stop": ["e"]},
    {"id": {"x": 1}, "prompt": "é", "temperature": 1.0, "logprobs": 1},
]


@pytest.fixture
def run(invoke: Run, tiny_gpt2: Path, tmp_path: Path) -> Run:
    lines = [json.dumps(record) for record in RECORDS]
    (tmp_path / "in.jsonl").write_text("\n\n".join(lines) + "\n")
    return lambda flags="", output="out.jsonl": invoke(
        f"generate -m {tiny_gpt2} --jsonl in.jsonl -n 9 --resume -o {output} {flags}"
    )


@pytest.fixture
def whole(run: Run, tmp_path: Path) -> bytes:
    result = run("--batch-size 2", "whole.jsonl")
    assert result.code == 0
    assert result.err.startswith("1 of 5 records failed; line 5: ")
    return (tmp_path / "whole.jsonl").read_bytes()


def test_documents_hold_nothing_that_changes(whole: bytes, run: Run, invoke: Run, tiny_gpt2: Path) -> None:
    plain = invoke(f"generate -m {tiny_gpt2} --jsonl in.jsonl -n 9").out.splitlines()
    for line, other in zip(whole.splitlines(), plain, strict=True):
        document = json.loads(other)
        kept = {key: document[key] for key in document if key not in ("created", "timings")}
        if "llmcli" in kept:
            assert kept["llmcli"].pop("threads") > 0
        assert json.loads(line) == kept


@kernels_only
def test_the_same_bytes_with_another_number_of_threads(whole: bytes, run: Run, tmp_path: Path) -> None:
    for threads in (1, 2):
        assert run(f"-t {threads}", f"{threads}.jsonl").code == 0
        assert (tmp_path / f"{threads}.jsonl").read_bytes() == whole


@kernels_only
@pytest.mark.parametrize("share", [0.0, 0.1, 0.45, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_cut_anywhere_and_resumed(whole: bytes, run: Run, tmp_path: Path, share: float, batch: int) -> None:
    (tmp_path / "out.jsonl").write_bytes(whole[: int(share * len(whole))])
    result = run(f"--batch-size {batch}")
    assert result.code == 0
    assert result.err.startswith("1 of 5 records failed; line 5: ")
    assert (tmp_path / "out.jsonl").read_bytes() == whole


@pytest.mark.parametrize("flags", ["--seed 1", "--temperature 0.5", "--dtype bfloat16", "--stop x"])
def test_another_run_is_not_gone_on_with(whole: bytes, run: Run, tmp_path: Path, flags: str) -> None:
    half = whole[: whole.index(b"\n") + 1]
    (tmp_path / "out.jsonl").write_bytes(half + b"{")
    result = run(flags)
    assert result.code == 2
    assert "expected the answer to line 1 of --jsonl under these flags, got line 1 of 'out.jsonl'" in result.err
    assert (tmp_path / "out.jsonl").read_bytes() == half + b"{"


def test_a_file_of_something_else(whole: bytes, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("notes\n")
    assert run().code == 2
    assert (tmp_path / "out.jsonl").read_text() == "notes\n"
    (tmp_path / "out.jsonl").write_bytes(whole + whole)
    result = run()
    assert result.code == 2
    assert "expected no more lines of --jsonl under these flags, got line 6" in result.err


@pytest.mark.parametrize(
    "flags", ["--jsonl in.jsonl --resume", "--jsonl in.jsonl --resume -o out --format text", "x --resume -o out"]
)
def test_what_cannot_be_resumed(run: Run, invoke: Run, tiny_gpt2: Path, tmp_path: Path, flags: str) -> None:
    assert invoke(f"generate -m {tiny_gpt2} {flags}").code == 2
    assert not (tmp_path / "out").exists()
    os.mkfifo(tmp_path / "pipe")
    assert run(output="pipe").code == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_signal_in_the_middle(
    shell_environment: dict[str, str], invoke: Run, tiny_gpt2: Path, tmp_path: Path, number: signal.Signals
) -> None:
    records = [{"id": n, "prompt": "The sea", "max_tokens": 50} for n in range(300)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = f"generate -m {tiny_gpt2} --jsonl in.jsonl --temperature 1 --batch-size 8 --resume -q -o"
    out = tmp_path / "out.jsonl"
    running = subprocess.Popen(["llmcli", *command.split(), out.name], cwd=tmp_path, env=shell_environment)
    while running.poll() is None and not (out.exists() and out.stat().st_size):
        time.sleep(0.01)
    running.send_signal(number)
    assert running.wait(60) == (130 if number == signal.SIGINT else -number)
    cut = out.read_bytes()
    assert invoke(f"{command} out.jsonl").code == 0
    assert invoke(f"{command} whole.jsonl").code == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert out.read_bytes() == whole
    assert whole.startswith(cut)
    assert 0 < len(cut) < len(whole)
    assert len({json.loads(line)["choices"][0]["text"] for line in whole.splitlines()}) > 200
