"""`bench compare`: verdicts by whole intervals, live and from files, and the exit codes 0, 3 and 4."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from click.testing import Result as Invoked

from llmcli.benchmarking.comparison import change
from llmcli.cli import cli
from tests.conftest import Result


def speed(median: float, low: float | None, high: float | None, test: str = "pp8") -> dict[str, Any]:
    where = {"test": test, "dtype": "float32", "n_threads": 2, "n_batch": 1, "device": "cpu"}
    return {**where, "median_ts": median, "ci_low_ts": low, "ci_high_ts": high}


def write(path: Path, *results: dict[str, Any], schema: str = "llmcli/bench/1", **more: Any) -> str:
    path.write_text(json.dumps({"schema": schema, "environment": {"cpu": "x"}, "results": results, **more}))
    return str(path)


def compare(*arguments: str) -> Invoked:
    return CliRunner().invoke(cli, ["bench", "compare", "--from-files", *arguments])


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ((100, 99, 101), "no slower"),
        ((96, 96, 96), "no slower"),
        ((120, 119, 121), "faster"),
        ((90, 89, 91), "slower"),
        ((95, 90, 100), "inconclusive"),
        ((200, 1, 300), "inconclusive"),
        ((200, None, None), "inconclusive"),
    ],
)
def test_the_whole_interval_decides(second: tuple[float, float | None, float | None], verdict: str) -> None:
    assert change("x", (100, 99.5, 100.5), second, 0.05).verdict == verdict
    assert change("x", (100, None, 100.5), second, 0.05).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("second", "code", "verdict"),
    [
        ([speed(100, 99, 101)], 0, "pass"),
        ([speed(80, 79, 81)], 3, "regression"),
        ([speed(95, 80, 110)], 4, "inconclusive"),
        ([speed(95, 80, 110), speed(80, 79, 81, "tg4")], 3, "regression"),
    ],
)
def test_exit_codes(tmp_path: Path, second: list[dict[str, Any]], code: int, verdict: str) -> None:
    first = write(tmp_path / "a.json", speed(100, 99, 101), speed(100, 99, 101, "tg4"))
    other = write(tmp_path / "b.json", *second)
    result = compare(first, other, "--json")
    assert result.exit_code == code
    document = json.loads(result.stdout)
    assert document["schema"] == "llmcli/bench-compare/1"
    assert document["verdict"] == verdict
    assert document["only_in_one"] == (["tg4 float32 2 1 cpu"] if len(second) == 1 else [])
    text = compare(first, other)
    assert text.exit_code == code
    assert document["results"][-1]["verdict"] in text.stdout
    assert compare(first, other, "--format", "md").stdout.count("\n") == 2 + len(second)


def test_tolerance(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", speed(100, 99, 101)), write(tmp_path / "b", speed(80, 79, 81))
    assert compare(first, second, "--tolerance", "25").exit_code == 0
    assert compare(second, first).exit_code == 0


def test_operators_are_compared_by_their_ratio_to_torch(tmp_path: Path) -> None:
    def operator(median: float) -> dict[str, Any]:
        name = {"op": "softmax", "variant": "new", "shape": "8x8", "dtype": "float32"}
        return {**name, "ratio": {"median": median, "ci_low": median * 0.99, "ci_high": median * 1.01}}

    paths = [write(tmp_path / str(n), operator(n), schema="llmcli/bench-kernels/1") for n in (2, 1)]
    assert compare(*paths).exit_code == 3
    assert compare(*reversed(paths)).exit_code == 0
    assert compare(paths[0], write(tmp_path / "a", speed(1, 1, 1))).exit_code == 2


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 5),
        ("[]", 5),
        ('{"schema": "llmcli/doctor/1"}', 5),
        ('{"schema": "llmcli/bench/1"}', 5),
        ('{"schema": "llmcli/bench/1", "results": [1]}', 5),
        ('{"schema": "llmcli/bench/1", "results": [{}]}', 5),
        ('{"schema": "llmcli/bench/1", "results": []}', 2),
        ('{"schema": "llmcli/bench/1", "results": [], "interrupted": true}', 5),
        ('{"schema": ["llmcli/bench/1"]}', 5),
        (json.dumps({"schema": "llmcli/bench/1", "environment": "x", "results": [speed(1, 1, 1)]}), 5),
        (json.dumps({"schema": "llmcli/bench/1", "results": [speed(float("nan"), 1, 1)]}), 5),
        (json.dumps({"schema": "llmcli/bench/1", "results": [speed(1, 1, 10**400)]}), 5),
        (json.dumps({"schema": "llmcli/bench/1", "results": [speed("x", 1, 1)]}), 5),  # type: ignore[arg-type]
        (json.dumps({"schema": "llmcli/bench/1", "results": [speed(0, 0, 0)]}), 5),
        (json.dumps({"schema": "llmcli/bench/1", "results": [speed(1, 1, 1)] * 2}), 5),
    ],
)
def test_malformed_documents(tmp_path: Path, text: str, code: int) -> None:
    (tmp_path / "bad").write_text(text)
    result = compare(write(tmp_path / "good", speed(1, 1, 1)), str(tmp_path / "bad"))
    assert result.exit_code == code
    assert result.stderr.count("\n") == 1
    assert compare(str(tmp_path / "missing"), str(tmp_path / "bad")).exit_code == 5


def test_other_machines_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a", speed(1, 1, 1))
    second = write(tmp_path / "b", speed(1, 1, 1), environment={"cpu": "y", "cores": 2, "date": "later"})
    result = compare(first, second)
    assert result.exit_code == 2
    assert "cpu x and y; cores None and 2:" in result.stderr


def test_for_a_dashboard(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", speed(100, 99, 101)), write(tmp_path / "b", speed(100, 99, 101))
    (entry,) = json.loads(compare(first, second, "--format", "github-benchmark").stdout)
    assert entry == {"name": "pp8 float32 2 1 cpu", "unit": "× A", "value": 1.0, "range": f"{99 / 101}–{101 / 99}"}


@pytest.mark.parametrize("arguments", ["--commands a b", "-m gpt2 a b", "--prompt-tokens 3 a b"])
def test_flags_that_contradict(arguments: str) -> None:
    assert compare(*arguments.split()).exit_code == 2


def live(shell: Callable[..., Result], arguments: str) -> tuple[Result, dict[str, Any]]:
    """A live comparison: the verdict, whichever it is on this machine, and the exit code agree."""
    result = shell(f"llmcli bench compare {arguments} --json")
    document = json.loads(result.out)
    assert document["schema"] == "llmcli/bench-compare/1"
    assert result.code == {"pass": 0, "regression": 3, "inconclusive": 4}[document["verdict"]]
    lines = [line for line in result.err.splitlines() if line.startswith(("noise: ", "error: "))]
    assert [line[:7] for line in lines] == ["noise: ", "error: "][: len(lines)]
    assert len(lines) == 1 + (result.code != 0)
    for test in document["results"]:
        assert test["verdict"] in ("faster", "no slower", "slower", "inconclusive")
        assert [len(side) for side in test["samples_ns"]] == [test["rounds"]] * 2
        assert test["ratio"] > 0
        assert (test["low"] is None) == (test["smallest_slowdown_pct"] is None) == (test["rounds"] < 10)
    return result, document


def test_two_precisions_of_the_embedded_model(shell: Callable[..., Result]) -> None:
    _, document = live(shell, "dtype=float32 threads=2 --prompt-tokens 16 --gen-tokens 2 -t 1 --time-budget 2")
    assert [side["dtype"] for side in document["sides"]] == ["float32", "bfloat16"]
    assert [side["threads"] for side in document["sides"]] == [1, 2]
    assert [side["model"] for side in document["sides"]] == ["default", "default"]
    assert [test["test"] for test in document["results"]] == ["pp16", "tg2"]
    assert document["environment"]["cores"] >= 1


def test_command_lines(shell: Callable[..., Result]) -> None:
    result, document = live(shell, "--commands 'sleep 0.01' 'sleep 0.04' --time-budget 20")
    assert result.code == 3, document
    assert document["results"][0]["verdict"] == "slower"
    failed = CliRunner().invoke(cli, ["bench", "compare", "--commands", "true", "false"])
    assert failed.exit_code == 2
    assert "exit 1 from 'false'" in failed.stderr


def test_an_interrupt_leaves_the_rounds_so_far(shell: Callable[..., Result]) -> None:
    interrupting = "echo >>runs; [ $(wc -l <runs) -ne 12 ] || kill -INT $PPID; sleep 0.02"
    result = shell(f"llmcli bench compare --commands 'sleep 0.02' '{interrupting}' --tolerance 0 --json")
    assert result.code == 130
    document = json.loads(result.out)
    assert document["interrupted"]
    assert [test["rounds"] for test in document["results"]] == [4]  # ten samples of B after the two to warm up
    assert len(document["results"][0]["samples_ns"][0]) == 4


def test_errors_of_the_workers(shell: Callable[..., Result]) -> None:
    result = shell("llmcli bench compare -q no/such/model default")
    assert (result.code, result.out) == (5, "")
    assert result.err.startswith("error: 'no/such/model': ")
    assert result.err.count("\n") == 1


def test_in_a_shell(shell: Callable[..., Result], tmp_path: Path) -> None:
    write(tmp_path / "a", speed(100, 99, 101))
    write(tmp_path / "b", speed(50, 49, 51))
    result = shell("llmcli bench compare --from-files a b || echo $?")
    assert result.out.splitlines()[-1] == "3"
    assert result.err.startswith("error: 1 of 1 tests are more than 5 % slower")
