"""`llmcli evaluate` on a tiny model: figures, samples, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmcli.cli import cli


def evaluate(tiny: Path, *flags: str, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    result = CliRunner().invoke(cli, ["evaluate", "-m", str(tiny), "-q", "-n", "4", *flags], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def record(prompt: str, completion: str) -> str:
    return json.dumps({"prompt": prompt, "completion": completion}) + "\n"


def test_a_model_agrees_with_itself(tiny_gpt2: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    code, out, err = evaluate(tiny_gpt2, "--samples", str(samples), stdin=record("The sea", "x") + record("ship", "y"))
    assert (code, out) == (0, "exact match 0.00 % (0 of 2)\n"), err
    written = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [one["completion"] for one in written] == ["x", "y"]
    again = record("The sea", written[0]["written"]) + record("ship", "y")
    document = json.loads(evaluate(tiny_gpt2, "--json", stdin=again)[1])
    assert document["schema"] == "llmcli/evaluation/1"
    assert document["metrics"]["exact"] == {"score": 0.5, "right": 1, "n": 2}


@pytest.mark.parametrize(
    ("flags", "stdin", "code", "words"),
    [
        ([], "", 2, "standard input has no records"),
        ([], record("a", "b") + '{"prompt": "a"}', 2, "standard input:2: expected a string under 'completion'"),
        (["missing.jsonl"], "", 5, "missing.jsonl"),
        (["--answer", "("], record("a", "b"), 2, "regular expression"),
        (["--answer", "z"], record("a", "b"), 2, "matches nothing"),
    ],
)
def test_refuses(tiny_gpt2: Path, flags: list[str], stdin: str, code: int, words: str) -> None:
    found, out, err = evaluate(tiny_gpt2, *flags, stdin=stdin)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert words in err
