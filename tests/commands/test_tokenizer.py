"""`llmcli tokenizer train`: a directory that train and transformers read, the same bytes again, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmcli.cli import cli
from llmcli.tokenizer import Tokenizer
from tests.conftest import Result
from tests.tiny import TEXT


def train(*flags: str, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    result = CliRunner().invoke(cli, ["tokenizer", "train", *flags], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_makes_a_tokenizer(tmp_path: Path) -> None:
    code, out, err = train("-", "--vocab-size", "300", "--output", str(tmp_path / "a"), "--json", stdin=TEXT)
    assert code == 0, err
    summary = json.loads(out)
    tokenizer = Tokenizer.open(tmp_path / "a")
    assert (summary["vocab_size"], tokenizer.vocab_size, tokenizer.eos_id) == (300, 300, 0)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert summary["bytes_per_token"] == len(TEXT.encode()) / len(ids) > 1.3
    assert train("-", "--vocab-size", "300", "--output", str(tmp_path / "b"), stdin=TEXT)[0] == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_makes_a_tokenizer_of_characters(tmp_path: Path) -> None:
    text = "naïve cafés, – and 「日本」 🙂\n\tthe the the\n"
    code, out, err = train("-", "--characters", "--output", str(tmp_path), "--json", stdin=text)
    assert code == 0, err
    tokenizer = Tokenizer.open(tmp_path)
    ids = tokenizer.encode(text)
    assert [tokenizer.decode([token]) for token in ids] == list(text)
    assert json.loads(out)["bytes_per_token"] == len(text.encode()) / len(text)
    unknown = "Ω日✓"
    assert tokenizer.decode(tokenizer.encode(unknown)) == unknown
    assert train("-", "--characters", "--output", str(tmp_path), "--json", stdin="plain")[1].count('"vocab_size": 257')


def test_transformers_reads_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert train("-", "--vocab-size", "300", "--output", str(tmp_path), stdin=TEXT)[0] == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXT).input_ids == Tokenizer.open(tmp_path).encode(TEXT)
    assert theirs.eos_token_id == 0


def test_train_uses_it(tmp_path: Path, shell: Callable[..., Result]) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 3)
    done = shell(
        "llmcli tokenizer train text.txt --vocab-size 280 --output words && "
        "llmcli train text.txt --tokenizer words --preset gpt2-nano -c 16 --iters 1 --output model -q && "
        "cmp words/tokenizer.json model/tokenizer.json"
    )
    assert done.code == 0, done.err
    assert done.out.startswith("words: 280 entries, ")


@pytest.mark.parametrize(
    ("flags", "stdin", "code", "words"),
    [
        ([], "", 2, "expected text, got none"),
        (["-"], " \n", 2, "standard input is empty"),
        (["missing.txt"], "", 5, "missing.txt"),
        (["-", "--vocab-size", "256"], "a", 2, "--vocab-size"),
        (["-", "--vocab-size", "300", "--characters"], "a", 2, "--vocab-size or --characters"),
        (["-", "--output", "/dev/null/here"], TEXT, 6, "/dev/null/here"),
    ],
)
def test_refuses(tmp_path: Path, flags: list[str], stdin: str, code: int, words: str) -> None:
    found, out, err = train("--output", str(tmp_path / "a"), *flags, stdin=stdin)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert words in err
