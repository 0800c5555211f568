"""`llmcli classify` on a tiny classifier: a line out for each line in, JSON, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmcli.cli import cli
from tests.test_classification import directory

__all__ = ["directory"]


def classify(directory: Path, *flags: str, stdin: str | bytes = "") -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    result = CliRunner().invoke(cli, ["classify", "-m", str(directory), "-q", *flags], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_a_line_for_each_line(directory: Path) -> None:
    code, out, _ = classify(directory, stdin="The sea\r\n\nship")
    assert code == 0
    rows = [line.split("\t") for line in out.splitlines()]
    assert len(rows) == 3
    assert all(label in ("bad", "good", "so so") and 1 / 3 < float(p) <= 1 for label, p in rows)
    assert classify(directory, stdin="The sea\n")[1].splitlines() == out.splitlines()[:1]


@pytest.mark.parametrize("size", ["1", "2", "7"])
def test_the_batch_changes_no_byte(directory: Path, size: str) -> None:
    text = "".join(f"{'the old ship ' * n}\n" for n in range(6))
    expected = classify(directory, "--format", "jsonl", stdin=text)
    assert classify(directory, "--format", "jsonl", "--batch-size", size, "-t", size, stdin=text) == expected


def test_json_has_every_probability(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "The sea"}\n{"text": "ship", "label": "ignored"}\n')
    document = json.loads(classify(directory, str(file), "--json")[1])
    assert document["schema"] == "llmcli/classification/1"
    assert document["labels"] == ["bad", "good", "so so"]
    lines = [json.loads(line) for line in classify(directory, str(file), "--format", "jsonl")[1].splitlines()]
    assert document["results"] == lines
    for result in lines:
        assert sum(result["probabilities"].values()) == pytest.approx(1)
        assert result["p"] == max(result["probabilities"].values()) == result["probabilities"][result["label"]]


def test_figures_of_labelled_texts(directory: Path, tmp_path: Path) -> None:
    texts = ["The sea", "ship", "said the boy", "the old man"]
    answers = [line.split("\t")[0] for line in classify(directory, stdin="\n".join(texts))[1].splitlines()]
    wanted = [*answers[:3], next(label for label in ("bad", "good") if label != answers[3])]
    records = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, wanted, strict=True)]
    file = tmp_path / "dev.jsonl"
    file.write_text("\n".join(records))
    document = json.loads(classify(directory, str(file), "--figures", "--json")[1])
    assert (document["schema"], document["n"], document["accuracy"]) == ("llmcli/class-figures/1", 4, 0.75)
    assert sum(map(sum, document["confusion"])) == 4
    code, out, _ = classify(directory, "--figures", stdin="\n".join(records))
    assert (code, out.splitlines()[-1]) == (0, "accuracy 75.00 % (3 of 4)")
    assert out.splitlines()[0].split()[:2] == ["class", "precision"]


@pytest.mark.parametrize(
    ("flags", "stdin", "code", "words"),
    [
        (["missing.txt"], b"", 5, "missing.txt"),
        ([], b"ok\ncaf\xe9\n", 2, "line 2 of standard input"),
        (["{tmp}/bad.jsonl"], b"", 2, "bad.jsonl:2: expected a string under 'text'"),
        (
            ["--figures"],
            b'{"text": "a", "label": "worse"}',
            2,
            "standard input:1: expected a label among bad, good, so so",
        ),
        (["--figures"], b"plain", 2, "standard input:1: not JSON"),
        (["--figures", "--format", "jsonl"], b"", 2, "expected --format text or json"),
    ],
)
def test_refuses(directory: Path, tmp_path: Path, flags: list[str], stdin: bytes, code: int, words: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    found, _, err = classify(directory, *(flag.format(tmp=tmp_path) for flag in flags), stdin=stdin)
    assert (found, err.count("\n")) == (code, 1)
    assert words in err


def test_needs_a_classifier(tiny_gpt2: Path) -> None:
    code, out, err = classify(tiny_gpt2, stdin="a\n")
    assert (code, out) == (5, "")
    assert "expected a classifier" in err
