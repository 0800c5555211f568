"""`llmcli perplexity` in a shell: figures, formats, and an exit code for each way of having no text."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Result
from tests.tiny import TEXT

Shell = Callable[..., Result]


@pytest.fixture
def ppl(shell: Shell, tiny_gpt2: Path, tmp_path: Path) -> Shell:
    """`ppl("a.txt --json")` runs `llmcli perplexity` with the tiny model where a.txt and b.txt lie."""
    (tmp_path / "a.txt").write_text(TEXT * 5)
    (tmp_path / "b.txt").write_text(TEXT[:90])
    return lambda arguments, **settings: shell(f"llmcli perplexity -m {tiny_gpt2} {arguments}", **settings)


def test_json_equals_the_library(ppl: Shell, tiny_gpt2: Path) -> None:
    from llmcli import loading, scoring

    result = ppl("a.txt b.txt --json --ctx-size 32 --ppl-stride 8")
    assert (result.code, result.err) == (0, "")
    got = json.loads(result.out)
    loaded = loading.load(tiny_gpt2)
    rule = scoring.Sliding(32, 8)
    docs = [scoring.encode(*pair, loaded.tokenizer) for pair in (("a.txt", TEXT * 5), ("b.txt", TEXT[:90]))]
    scores = [np.concatenate(list(scoring.logprobs(loaded.model, doc.ids, rule, batch_size=64))) for doc in docs]
    engine = got.pop("llmcli")
    assert got == {"schema": "llmcli/perplexity/1", "model": str(tiny_gpt2), **scoring.report(docs, scores, rule)}
    assert (engine["seed"], engine["dtype"], engine["model_sha256"]) == (0, "float32", loaded.sha256())
    assert [row["name"] for row in got["documents"]] == ["a.txt", "b.txt"]
    assert got["ci"]["low"] < got["ppl"] < got["ci"]["high"]


def test_stdin_file_alias_and_protocol_name_agree(ppl: Shell, shell: Shell, tiny_gpt2: Path) -> None:
    by_file = json.loads(ppl("a.txt --json --batch-size 1").out)
    alias = f"llmcli ppl -m {tiny_gpt2} --protocol sliding:64/32 --batch-size 7 --format json < a.txt"
    by_stdin = json.loads(shell(alias).out)
    assert by_stdin["documents"][0].pop("name") == "-"
    assert by_file["documents"][0].pop("name") == "a.txt"
    assert by_file == by_stdin


def test_text_and_csv_carry_the_same_figures(ppl: Shell) -> None:
    figures = json.loads(ppl("a.txt b.txt --json").out)
    text = ppl("a.txt b.txt -o out.txt && cat out.txt").out
    for number in (figures["ppl"], figures["ci"]["low"], figures["documents"][1]["bits_per_byte"]):
        assert f"{number:.4f}" in text
    assert figures["fingerprint"] in text
    assert "sliding:64/32" in text
    rows = list(csv.DictReader(io.StringIO(ppl("a.txt b.txt --format csv").out)))
    assert [row["name"] for row in rows] == ["a.txt", "b.txt", "total"]
    assert float(rows[2]["ppl"]) == figures["ppl"]
    assert int(rows[1]["n_bytes"]) == figures["documents"][1]["n_bytes"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("", 2, "standard input: expected at least two tokens, got 0"),
        ("one.txt", 2, "one.txt: expected at least two tokens, got 1"),
        ("one.txt empty.txt", 2, "expected at least two tokens"),
        ("bad.txt", 2, "byte 0xff at offset 3 of 'bad.txt'"),
        ("a.txt nowhere.txt", 5, "'nowhere.txt', which does not exist"),
        (".", 2, "got the directory '.'; name its files: ./*.txt"),
        ("- -", 2, "expected '-' (stdin) once"),
        ("''", 5, "got ''"),
        ("a.txt -m ''", 2, "expected a model, got an empty name"),
        ("/proc/self/mem", 2, "/proc/self/mem"),
        ("a.txt -c 65", 2, "expected at most 64 tokens"),
        ("a.txt -c 8 --stride 9", 2, "expected 1 to 8 (the context), got 9"),
        ("a.txt -c 0", 2, "0"),
        ("a.txt --stride 0", 2, "0"),
        ("a.txt --batch-size 4097", 2, "4097"),
        ("a.txt --protocol sliding:8/4 --stride 4", 2, "either --protocol or"),
        ("a.txt --protocol paper", 2, "expected one of sliding, llamacpp, hf, lm-eval, gpt2-paper, got 'paper'"),
        ("a.txt -m nowhere/at/all", 5, "nowhere/at/all"),
        ("a.txt -o nowhere/out.txt", 2, "nowhere/out.txt"),
        ("a.txt -o /dev/full", 6, "no space left"),
    ],
)
def test_refusals(ppl: Shell, tmp_path: Path, arguments: str, code: int, words: str) -> None:
    (tmp_path / "one.txt").write_text(" the")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    result = ppl(arguments)
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


def test_flags_beat_variables(ppl: Shell) -> None:
    by_name, by_number = {"LLMCLI_PERPLEXITY_PROTOCOL": "sliding:8/2"}, {"LLMCLI_PERPLEXITY_STRIDE": "3"}
    assert "sliding:16/8" in ppl("b.txt --protocol sliding:16/8", **by_number).out
    assert "sliding:64/5" in ppl("b.txt --stride 5", **by_name).out
    assert "sliding:8/2" in ppl("b.txt", **by_name).out
    assert ppl("b.txt", **by_name, **by_number).code == 2


def test_a_name_in_another_encoding(ppl: Shell, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"b\xff.txt")).write_text(TEXT)
    assert json.loads(ppl("b?.txt --json").out)["documents"][0]["name"] == "b\ufffd.txt"


def test_no_text_on_a_terminal_is_a_hint(shell: Shell) -> None:
    result = shell("script -qec 'llmcli ppl' /dev/null")
    assert result.code == 2
    assert "name files, or pipe text in" in result.out


def test_two_tokens_have_a_perplexity_but_no_interval(ppl: Shell) -> None:
    result = ppl("-c 1", stdin=b"qz")
    assert result.code == 0
    assert "no interval: fewer than 8 tokens" in result.out
    assert result.out.splitlines()[1].split()[4:6] == ["1", "1"]


def test_replaced_bytes_are_scored(ppl: Shell, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    result = ppl("bad.txt --json --encoding-errors replace")
    assert result.code == 0
    assert json.loads(result.out)["n_bytes"] == 5  # bc and the three bytes of U+FFFD


def test_a_short_document_among_others_is_left_out(ppl: Shell, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    result = ppl("a.txt empty.txt --json")
    assert result.code == 0
    assert result.err == "warning: empty.txt: expected at least two tokens, got 0; left out\n"
    figures = json.loads(result.out)
    assert figures["documents"][1]["ppl"] is None
    assert "error" in figures["documents"][1]
    assert figures["ppl"] == figures["documents"][0]["ppl"]


@pytest.mark.parametrize(("files", "first"), [("a.txt same.txt", "a.txt"), ("same.txt b.txt same.txt", "same.txt")])
def test_a_text_that_counts_twice(invoke: Shell, tiny_gpt2: Path, tmp_path: Path, files: str, first: str) -> None:
    for name, text in (("a.txt", TEXT), ("b.txt", TEXT[:90]), ("same.txt", TEXT)):
        (tmp_path / name).write_text(text)
    result = invoke(f"ppl -m {tiny_gpt2} {files}")
    assert (result.code, result.err) == (0, f"warning: same.txt holds the same text as {first}: it counts twice\n")


def test_logits_that_are_no_numbers(ppl: Shell, tiny_gpt2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_gpt2, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["transformer.ln_f.weight"][0] = 3e38  # finite, as every weight must be, but a logit will not be
    weights["transformer.wte.weight"][5, 0], weights["transformer.wte.weight"][6, 0] = 100, -100
    save_file(weights, tmp_path / "broken" / "model.safetensors")
    result = ppl("a.txt b.txt --json -m broken")
    assert result.code == 5
    assert "a.txt: log-probability of token 1 is nan" in result.err
    figures = json.loads(result.out)
    assert figures["ppl"] is None
    assert figures["ci"]["low"] is None
    assert "nan" in figures["error"]


@pytest.mark.parametrize("seconds", [0.3, 4])
def test_ctrl_c_leaves_nothing(shell: Shell, tiny_gpt2: Path, tmp_path: Path, seconds: float) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 2000)
    result = shell(f"timeout --preserve-status -s INT {seconds} llmcli ppl -m {tiny_gpt2} --stride 1 long.txt -o out")
    assert (result.code, result.out) == (130, "")
    assert list(tmp_path.glob("*out*")) == []


def test_protocols_by_name_and_all_in_one_table(invoke: Shell, tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 5)
    (tmp_path / "b.txt").write_text(TEXT)
    document = json.loads(invoke(f"ppl -m {tiny_gpt2} --protocol all a.txt b.txt --json").out)
    assert document["schema"] == "llmcli/perplexity-all/1"
    rows = {row["protocol"]["family"]: row for row in document["results"]}
    assert list(rows) == ["sliding", "llamacpp", "hf", "lm-eval", "gpt2-paper"]
    for row in rows.values():
        name = row["protocol"]["name"]
        alone = json.loads(invoke(f"ppl -m {tiny_gpt2} --protocol {name} a.txt b.txt --json").out)
        assert {key: alone[key] for key in row} == row
    text = invoke(f"ppl -m {tiny_gpt2} --protocol all a.txt b.txt").out
    assert [line.split()[1] for line in text.splitlines()[1:]] == [f"{row['ppl']:.4f}" for row in rows.values()]
    table = list(csv.DictReader(invoke(f"ppl -m {tiny_gpt2} --protocol all a.txt b.txt --format csv").out.splitlines()))
    for line, row in zip(table, rows.values(), strict=True):
        assert (line["protocol"], line["fingerprint"]) == (row["protocol"]["name"], row["fingerprint"])
        assert float(line["word_ppl"]) == row["word_ppl"]
        assert float(line["low"]) == row["headline"]["low"] < row["headline"]["value"] < float(line["high"])
    macro = rows["sliding"]["macro"]
    assert f"mean of documents: ppl {macro['ppl']:.4f}" in invoke(f"ppl -m {tiny_gpt2} a.txt b.txt").out


def test_what_a_protocol_refuses(invoke: Shell, tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT[:60])
    result = invoke(f"ppl -m {tiny_gpt2} --protocol llamacpp:64 a.txt")
    assert (result.code, result.out) == (2, "")
    assert "a.txt: expected at least 128 tokens, got " in result.err
    result = invoke(f"ppl -m {tiny_gpt2} --protocol all a.txt")
    assert result.code == 0
    assert result.out.splitlines()[2].split()[:2] == ["llamacpp:64", "-"]
    assert "llamacpp:64: a.txt: expected at least 128 tokens" in result.out
    table = csv.DictReader(invoke(f"ppl -m {tiny_gpt2} --protocol all --format csv a.txt").out.splitlines())
    (row,) = [row for row in table if row["protocol"] == "llamacpp:64"]
    assert (row["ppl"], row["low"], "at least 128 tokens" in row["error"]) == ("", "", True)
    assert invoke(f"ppl -m {tiny_gpt2} --protocol lm-eval:65 a.txt").code == 2
