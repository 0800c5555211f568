"""tokenize and detokenize: there and back byte for byte, every layout, bad ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from llmcli.cli import cli
from llmcli.commands.detokenize import parse
from llmcli.tokenizer import Tokenizer
from tests import conftest

TEXTS = ["", "The sea was calm.\n", "é😀\r\n\ttabs  and   spaces ", "\0 nul", "<|endoftext|>The", "\u2028 line\x85"]


@pytest.fixture
def run(tiny_gpt2: Path) -> Callable[..., Result]:
    def invoke(name: str, *arguments: str, stdin: str | bytes = b"") -> Result:
        return CliRunner().invoke(cli, [name, "-m", str(tiny_gpt2), *arguments], input=stdin)

    return invoke


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(run: Callable[..., Result], tiny_gpt2: Path, text: str) -> None:
    result = run("tokenize", stdin=text.encode())
    assert result.exit_code == 0
    ids = [int(word) for word in result.stdout.split()]
    assert ids == Tokenizer.open(tiny_gpt2).encode(text)
    assert run("detokenize", stdin=result.stdout).stdout_bytes == text.encode()
    documents = run("tokenize", "--json", stdin=text.encode()).stdout
    assert json.loads(documents)["ids"] == ids
    assert run("detokenize", stdin=documents).stdout_bytes == text.encode()
    assert run("tokenize", "--count", stdin=text.encode()).stdout == f"{len(ids)}\n"


@given(st.text())
def test_there_and_back_for_any_text(tiny_gpt2: Path, text: str) -> None:
    tokenizer = Tokenizer.open(tiny_gpt2)
    assert b"".join(map(tokenizer.token_bytes, parse(" ".join(map(str, tokenizer.encode(text))), 1))) == text.encode()


def test_json_has_everything(run: Callable[..., Result]) -> None:
    document = json.loads(run("tokenize", "--json", "The é").stdout)
    assert document["schema"] == "llmcli/tokenize/1"
    assert document["n_tokens"] == len(document["ids"]) == len(document["pieces"])
    assert document["n_bytes"] == 6
    back = json.loads(run("detokenize", "--json", *map(str, document["ids"])).stdout)
    assert back == back | {"schema": "llmcli/detokenize/1", "text": "The é", "n_bytes": 6}


def test_pieces_show_bytes(run: Callable[..., Result]) -> None:
    rows = [line.split("\t") for line in run("tokenize", "--pieces", "sea é\n").stdout.splitlines()]
    assert all(len(row) == 2 and row[0].isdigit() for row in rows)
    shown = "".join(row[1][1:-1] for row in rows)
    assert shown in (r"sea \xc3\xa9\n", r"sea é\n")


def test_lines(run: Callable[..., Result]) -> None:
    text = "The sea\n\nthe boy\n"
    result = run("tokenize", "--lines", stdin=text)
    assert len(result.stdout.splitlines()) == 3
    assert run("detokenize", "--lines", stdin=result.stdout).stdout == text
    assert len(run("tokenize", "--lines", "--json", stdin=text).stdout.splitlines()) == 3
    assert run("tokenize", "--lines", stdin="").stdout == ""


def test_file_and_output(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "in").write_text("The sea")
    assert run("tokenize", "-f", str(tmp_path / "in"), "-o", str(tmp_path / "ids")).stdout == ""
    assert run("detokenize", "-f", str(tmp_path / "ids"), "-o", str(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out").read_text() == "The sea"


@pytest.mark.parametrize("layout", ["[5, 6,7]", "5,6,7", "5\n6\n7\n", "  5   6 7"])
def test_layouts(layout: str) -> None:
    assert parse(layout, 1) == [5, 6, 7]


@pytest.mark.parametrize(
    "ids",
    ["320", "99999999999999999999", "1.5", "x", "²", "0x5", "{}", '{"ids": [1', '{"ids": [null]}', '{"ids": 1.5}'],
)
def test_bad_ids_are_refused(run: Callable[..., Result], tmp_path: Path, ids: str) -> None:
    result = run("detokenize", "-o", str(tmp_path / "out"), stdin=f"{ids}\n")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_input(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run("tokenize", stdin=b"a\xff").exit_code == 2
    assert run("tokenize", "--encoding-errors", "replace", stdin=b"a\xff").exit_code == 0
    assert run("tokenize", "--count", "--pieces", "x").exit_code == 2
    assert run("detokenize", "-5").exit_code == 2
    assert run("detokenize", "-f", str(tmp_path / "missing")).exit_code == 5
    assert run("tokenize", "-m", str(tmp_path), "x").exit_code == 5
    assert run("tokenize", "-m", "./nowhere", "x").exit_code == 5


def test_no_torch(shell: Callable[..., conftest.Result], tiny_gpt2: Path) -> None:
    result = shell(f"PYTHONPROFILEIMPORTTIME=1 llmcli tokenize -m {tiny_gpt2} x")
    assert result.code == 0
    assert "tokenizers" in result.err
    assert not any(line.split("|")[-1].strip() == "torch" for line in result.err.splitlines())


def test_round_trip_through_pipes(shell: Callable[..., conftest.Result], tiny_gpt2: Path) -> None:
    script = f"llmcli tokenize -m {tiny_gpt2} | llmcli detokenize -m {tiny_gpt2}"
    text = "é😀 The sea\n\n"
    assert shell(script, stdin=text.encode()).out == text
