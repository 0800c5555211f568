"""`llmcli data prepare` through a real shell: what stays, the report, what train makes of it, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmcli.cli import cli
from tests.conftest import Result
from tests.tiny import TEXT


def test_prepares_what_train_reads(tmp_path: Path, shell: Callable[..., Result]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text(TEXT + "  \r\n")
    (tmp_path / "notes" / "b.txt").write_text(TEXT)
    (tmp_path / "notes" / "c.jsonl").write_text('{"text": "ship"}\n' + json.dumps({"text": TEXT[::-1], "id": 3}) + "\n")
    done = shell("llmcli data prepare notes --min-chars 10 -o clean.jsonl --report report.json")
    assert (done.code, done.out) == (0, ""), done.err
    kept = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert kept == [{"text": TEXT}, {"text": TEXT[::-1], "id": 3}]
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["schema"], report["n_in"], report["n_out"]) == ("llmcli/data-report/1", 4, 2)
    assert report["dropped"]["duplicate"] == {"n": 1, "first": ["notes/b.txt"]}
    assert report["dropped"]["too short"] == {"n": 1, "first": ["notes/c.jsonl:1"]}
    assert "notes/b.txt" in done.err
    assert "2 of 4 records stayed" in done.err
    flags = ["--preset", "gpt2-nano", "--vocab-size", "270", "-c", "16", "--iters", "1", "-q"]
    given = ["train", str(tmp_path / "clean.jsonl"), *flags, "--output", str(tmp_path / "model")]
    trained = CliRunner().invoke(cli, given)
    assert trained.exit_code == 0, trained.stderr


@pytest.mark.parametrize(
    ("flags", "stdin", "code", "words"),
    [
        ([], "", 2, "expected texts or records"),
        (["missing"], "", 5, "missing"),
        (["-"], '{"text": "a"}\nnonsense\n', 2, "standard input:2: not JSON"),
        (["-", "--min-chars", "9"], "a", 2, "none of 1 records stayed: too short"),
        (["-", "--min-chars", "9", "--max-chars", "8"], "a", 2, "max_chars 8 is below min_chars 9"),
        (["-", "--charset", "hex"], "a", 2, "expected a charset that Python knows"),
    ],
)
def test_refuses(tmp_path: Path, flags: list[str], stdin: str, code: int, words: str) -> None:
    output = tmp_path / "clean.jsonl"
    result = CliRunner().invoke(cli, ["data", "prepare", *flags, "-q", "-o", str(output)], input=stdin)
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
    assert words in result.stderr
    assert not output.exists()
