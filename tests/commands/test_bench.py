"""`bench` and `bench kernels`: formats, exit codes, Ctrl-C, through the real command line."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from llmcli.benchmarking import ceilings
from llmcli.benchmarking.environment import environment, machine_name
from llmcli.benchmarking.tables import KERNEL_COLUMNS, SPEED_COLUMNS
from llmcli.cli import cli
from tests.conftest import Result

FIELDS = [
    "test", "n_prompt", "n_gen", "n_depth", "n_batch", "n_threads", "device", "dtype", "median_ts", "ci_low_ts",
    "ci_high_ts", "samples_ns", "roofline_pct", "kernels", "environment",
]  # fmt: skip
SMALL = "--prompt-tokens 8 --gen-tokens 4 -t 1 -r 6"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Path) -> Callable[..., Any]:
    """`bench("--json …")` in this process, on the tiny model, with ceilings that take no time."""
    monkeypatch.setattr(ceilings, "MATRIX_SIZE", 256)
    monkeypatch.setattr(ceilings, "stream_bytes", lambda: 1 << 20)
    threads = torch.get_num_threads()

    def run(arguments: str, *, model: bool = True) -> Any:
        try:
            words = arguments.split()
            return CliRunner().invoke(cli, ["bench", *(["-m", str(tiny_gpt2)] if model else []), *words])
        finally:
            torch.set_num_threads(threads)

    return run


def test_json_has_one_object_per_test(bench: Callable[..., Any], tiny_gpt2: Path) -> None:
    result = bench("--json --prompt-tokens 4 --gen-tokens 2 -d 0,3 --batch-size 1,2 -t 1,2 -r 6")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == "llmcli/bench/1"
    assert document["interrupted"] is False
    assert {ceiling["kind"] for ceiling in document["ceilings"]} - {"registers"} == {"matrix", "read"}
    tests = document["results"]
    assert len({(t["test"], t["n_batch"], t["n_threads"]) for t in tests}) == len(tests) == 16
    for test in tests:
        assert [name for name in FIELDS if name not in test] == []
        assert test["model"] == str(tiny_gpt2)
        assert test["ci_low_ts"] <= test["median_ts"] <= test["ci_high_ts"]
        assert len(test["samples_ns"]) == 6
        assert test["roofline_pct"] > 0
        assert test["environment"]["threads"] == test["n_threads"]
        tokens = (test["n_prompt"] + test["n_gen"]) * test["n_batch"]
        speeds = sorted(1e9 * tokens / sample for sample in test["samples_ns"])
        assert test["median_ts"] == pytest.approx((speeds[2] + speeds[3]) / 2, rel=1e-3)


def test_every_format_carries_the_same_tests(bench: Callable[..., Any]) -> None:
    out = {
        name: bench(f"{SMALL} --format {name}").stdout for name in ("text", "jsonl", "csv", "md", "github-benchmark")
    }
    lines = [json.loads(line) for line in out["jsonl"].splitlines()]
    assert [line["test"] for line in lines] == ["pp8", "tg4"]
    assert all(line["schema"] == "llmcli/bench/1" for line in lines)
    assert [row["test"] for row in csv.DictReader(io.StringIO(out["csv"]))] == ["pp8", "tg4"]
    assert [line.split(" | ")[1] for line in out["md"].splitlines()[2:]] == ["pp8", "tg4"]
    assert out["text"].splitlines()[0].split()[: len(SPEED_COLUMNS)][:3] == ["model", "test", "dtype"]
    entries = json.loads(out["github-benchmark"])
    assert all(set(entry) == {"name", "unit", "value", "range"} for entry in entries)


def test_precisions_are_separate_tests(bench: Callable[..., Any]) -> None:
    document = json.loads(bench(f"{SMALL} --json --dtype float32,bfloat16").stdout)
    assert [test["dtype"] for test in document["results"]] == ["float32", "float32", "bfloat16", "bfloat16"]


def test_quantised_models_are_tests_of_their_own(bench: Callable[..., Any], tiny_gpt2: Path) -> None:
    for source in ("", f"--random {tiny_gpt2 / 'config.json'}"):
        for kind in ("int8", "int4"):
            result = bench(f"{SMALL} --json --quantize {kind} {source}", model=not source)
            assert result.exit_code == 0
            document = json.loads(result.stdout)
            assert {row["dtype"] for row in document["results"]} == {kind}
            assert {c["dtype"] for c in document["ceilings"] if c["kind"] == "matrix"} == {"int8", "float32"}


def test_few_repetitions_have_no_interval(bench: Callable[..., Any]) -> None:
    result = bench("--json --prompt-tokens 4 --gen-tokens 0 -r 2")
    (test,) = json.loads(result.stdout)["results"]
    assert test["ci_low_ts"] is None
    assert "no 95 % interval" in result.stderr


@pytest.mark.parametrize(("depth", "sizes"), [(0, [(64, 0), (0, 63)]), (8, [(56, 0), (0, 56)])])
def test_default_sizes_shrink_to_the_context(bench: Callable[..., Any], depth: int, sizes: list[Any]) -> None:
    document = json.loads(bench(f"--json -d {depth} -r 1").stdout)
    assert [(test["n_prompt"], test["n_gen"]) for test in document["results"]] == sizes


def test_random_weights_in_a_shape(bench: Callable[..., Any], tiny_gpt2: Path) -> None:
    result = bench(f"{SMALL} --json --random {tiny_gpt2 / 'config.json'}", model=False)
    document = json.loads(result.stdout)
    assert document["results"][0]["model"] == f"random {tiny_gpt2 / 'config.json'}"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--prompt-tokens 100", 2, "needs 100 positions and the model has 64"),
        ("--prompt-tokens 0 --gen-tokens 0", 2, "nothing to measure"),
        ("--prompt-tokens 8-2", 2, "runs backwards"),
        ("--batch-size 0", 2, "too small"),
        ("--dtype int3", 2, "expected a list of auto, float32"),
        ("-r 0", 2, "-r"),
        ("--random gpt2", 2, "got both"),
        ("--device cuda:99", 6, "cuda:99"),
        ("-o /nonexistent/file", 2, "/nonexistent"),
        ("chairs", 2, "chairs"),
        ("kernels chairs", 2, "chairs"),
        ("kernels --dtype auto", 2, "needs a model"),
        ("kernels -t 0", 2, "-t"),
    ],
)
def test_refused(bench: Callable[..., Any], arguments: str, code: int, words: str) -> None:
    result = bench(arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()[-1:]) == 1


def test_unknown_shapes_and_models(bench: Callable[..., Any]) -> None:
    assert bench("--random chair", model=False).exit_code == 5
    assert bench("-m ./chair", model=False).exit_code == 5
    assert bench("--random gpt2 --device cuda:99", model=False).exit_code == 6


def test_kernels_json_and_table(bench: Callable[..., Any], tmp_path: Path) -> None:
    arguments = "kernels gelu rms_norm --shrink 64 -r 1 --warmup 0"
    document = json.loads(bench(f"{arguments} --json", model=False).stdout)
    assert document["schema"] == "llmcli/bench-kernels/1"
    assert {result["op"] for result in document["results"]} == {"gelu", "rms_norm"}
    assert len(document["results"]) == 4
    assert all(result["verdict"] is None for result in document["results"])
    table = bench(f"{arguments} --format md --dtype bfloat16", model=False).stdout.splitlines()
    assert table[0] == "| " + " | ".join(KERNEL_COLUMNS) + " |"
    assert len(table) == 2 + 2


def test_kernels_name_the_file_by_the_cpu(bench: Callable[..., Any], tmp_path: Path) -> None:
    result = bench(f"kernels gelu --shrink 64 -r 1 --dtype float32 --json -o {tmp_path}", model=False)
    assert (result.exit_code, result.stdout) == (0, "")
    (file,) = tmp_path.iterdir()
    assert file.name == machine_name(environment()) + ".json"
    assert json.loads(file.read_text())["results"][0]["op"] == "gelu"


def test_a_wrong_kernel_fails_the_gate(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli import ops

    monkeypatch.setattr(ops, "gelu", lambda x, **_: x)
    result = bench("kernels gelu --shrink 64", model=False)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "differs from torch's" in result.stderr


@pytest.mark.slow
def test_quiet_says_nothing(shell: Callable[..., Result], tiny_gpt2: Path) -> None:
    result = shell(f"llmcli bench -m {tiny_gpt2} -q --prompt-tokens 4 --gen-tokens 0 -r 1 -t 1 --format csv")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 2


INTERRUPTED_MODEL = """
from llmcli.benchmarking.model_speed import ModelBenchmark

sample, taken = ModelBenchmark.sample, []

def interrupted(self, test):
    taken.append(test)
    if len(taken) == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return sample(self, test)

ModelBenchmark.sample = interrupted
"""
INTERRUPTED_KERNELS = """
from dataclasses import replace
from llmcli.benchmarking import kernel_cases

first = kernel_cases.kernel_cases(["gelu"], divide=64)[0]
second = replace(first, build=lambda: os.kill(os.getpid(), signal.SIGINT))
kernel_cases.kernel_cases = lambda *_, **__: [first, second]
"""


@pytest.mark.parametrize(
    ("command", "prelude", "samples"),
    [
        ("bench -m {model} --prompt-tokens 4 --gen-tokens 0 -r 1000 -t 1 --warmup 0", INTERRUPTED_MODEL, 3),
        ("bench kernels -r 2 --warmup 0", INTERRUPTED_KERNELS, {"llmcli": 2, "torch": 2, "ceiling": 2}),
    ],
    ids=["bench", "kernels"],
)
def test_interrupt_leaves_a_whole_document(
    shell_environment: dict[str, str], tiny_gpt2: Path, command: str, prelude: str, samples: Any
) -> None:
    """Ctrl-C in the fourth sample or the second operator: what was finished is printed, and the exit code is 130."""
    program = f"""
import os, signal
from llmcli.benchmarking import ceilings
ceilings.MATRIX_SIZE, ceilings.stream_bytes = 256, lambda: 1 << 20
{prelude}
from llmcli.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *command.format(model=tiny_gpt2).split(), "--json"],
        capture_output=True,
        env=shell_environment,
        timeout=120,
        check=False,
        start_new_session=True,  # no terminal: the process reports 130 and does not die of the signal
    )
    assert done.returncode == 130, done.stderr.decode()
    document = json.loads(done.stdout)
    assert document["interrupted"] is True
    (result,) = document["results"]
    taken = result["samples_ns"]
    assert (len(taken) if isinstance(taken, list) else {name: len(x) for name, x in taken.items()}) == samples
