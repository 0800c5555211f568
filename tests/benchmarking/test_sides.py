"""Sides of a live comparison: their words, a worker that fails, a command line that fails."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llmcli.benchmarking.sides import COMMON, CommandLine, WarmWorker, label, parse_side, warm_up
from llmcli.errors import InputError, ModelError, ResourceError

NOTHING: dict[str, Any] = dict.fromkeys(COMMON) | {"dtype": "auto", "cache_dtype": "auto", "device": "cpu"}


def test_words() -> None:
    side = parse_side(
        "gpt2 dtype=bfloat16 quantize=int8 threads=3 python=new/bin/python LLMCLI_CPU_ISA=avx2", NOTHING, 1
    )
    assert side.load == NOTHING | {"model": "gpt2", "dtype": "bfloat16", "quantize": "int8"}
    assert (side.threads, side.python, side.variables) == (3, "new/bin/python", {"LLMCLI_CPU_ISA": "avx2"})
    assert parse_side("", NOTHING, 2).threads == 2
    assert parse_side("'./a=b c'", NOTHING, None).load["model"] == "./a=b c"
    common = NOTHING | {"quantize": "int4", "random": "gpt2"}
    assert parse_side("quantize=none", common, None).load["quantize"] is None
    assert parse_side("gpt2", common, None).load["random"] is None


@pytest.mark.parametrize("text", ["colour=red", "dtype=int3", "threads=0", "device=tpu", "'open", "quantize="])
def test_words_that_mean_nothing(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        parse_side(text, NOTHING, None)


def test_a_file_of_results_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "before.json").write_text("{}")
    with pytest.raises(InputError, match="--from-files"):
        parse_side(str(tmp_path / "before.json"), NOTHING, None)


def script(path: Path, commands: str) -> Path:
    """A program that does this when it has read a line."""
    path.write_text(f"#!/bin/sh\nread line\n{commands}\n")
    path.chmod(0o755)
    return path


def test_a_worker_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="interpreter"):
        WarmWorker(parse_side(f"python={tmp_path}/none", NOTHING, None))
    program = script(tmp_path / "python", "echo 'No module named x' >&2; exit 1")
    worker = WarmWorker(parse_side(f"python={program}", NOTHING, None))
    with pytest.raises(ResourceError, match="ended with 1: No module named x"):
        worker.facts  # noqa: B018
    worker.close()


def test_an_error_of_a_worker_keeps_its_kind(tmp_path: Path) -> None:
    program = script(tmp_path / "python", """echo '{"error": "no such model", "exit_code": 5}'; read line""")
    worker = WarmWorker(parse_side(f"x python={program}", NOTHING, None))
    with pytest.raises(ModelError, match="no such model"):
        worker.facts  # noqa: B018
    worker.close()


def test_command_lines() -> None:
    assert CommandLine("exit 0").sample("command", 2) > 0
    with pytest.raises(InputError, match="exit 3 from 'echo no >&2; exit 3': no"):
        CommandLine("echo no >&2; exit 3").sample("command", 1)


def test_short_samples_are_repeated() -> None:
    class Quick(CommandLine):
        def sample(self, test: Any, calls: int) -> float:
            return 3e6 if self.line == "a" else 2e6

    assert warm_up([Quick("a"), Quick("b")], ["command"]) == {"command": math.ceil(10 / 2)}
    assert label("command") == "command"
