"""`llmcli quantize` in a shell: a directory that other commands open, its figures, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.tiny import TEXT

Shell = Callable[..., Result]


def test_a_model_that_other_commands_open(shell: Shell, tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 3)
    made = shell(f"llmcli quantize {tiny_gpt2} -o small --to int4 --eval a.txt --json && ls -A")
    assert (made.code, made.err) == (0, "")
    document, end = json.JSONDecoder().raw_decode(made.out)
    assert made.out[end:].split() == ["a.txt", "small"]
    assert (document["schema"], document["to"], len(document["matrices"])) == ("llmcli/quantize/1", "int4", 9)
    assert document["bytes_after"] < document["bytes_before"]
    figures = document["evaluation"]
    scored = shell("llmcli perplexity -m small a.txt --json")
    assert json.loads(scored.out)["ppl"] == figures["new_ppl"]
    assert json.loads(scored.out)["llmcli"]["quantized"] == "int4"
    assert json.loads(scored.out)["fingerprint"] == figures["fingerprint"]
    at_load = shell(f"llmcli perplexity -m {tiny_gpt2} --quantize int4 a.txt --json")
    assert json.loads(at_load.out)["ppl"] == figures["new_ppl"]
    texts = shell(f"llmcli generate -m small The -n 8; llmcli generate -m {tiny_gpt2} --quantize int4 The -n 8 -t 1")
    assert texts.code == 0
    assert texts.out[: len(texts.out) // 2] == texts.out[len(texts.out) // 2 :]


def test_calibrated(shell: Shell, tiny_gpt2: Path, tmp_path: Path) -> None:
    """The same directory from any number of threads, with the text on stdin, and another than without a text."""
    (tmp_path / "a.txt").write_text(TEXT * 60)
    made = shell(
        f"llmcli quantize {tiny_gpt2} -o one --to int4 --calibrate a.txt --json -t 1 &&"
        f"llmcli quantize {tiny_gpt2} -o two --to int4 --calibrate - -t 2 < a.txt &&"
        f"llmcli quantize {tiny_gpt2} -o plain --to int4 && llmcli generate -m one The -n 4"
    )
    assert made.code == 0, made.err
    document, _ = json.JSONDecoder().raw_decode(made.out)
    assert document["calibration_tokens"] >= 2048
    assert "llmcli/quantize/1" in document["schema"]
    one, two, plain = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "plain"))
    assert one == two
    assert len(one) == len(plain)
    assert one != plain


def test_lines_for_people(shell: Shell, tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    first = shell(f"llmcli quantize -m {tiny_gpt2} -o small")
    assert first.code == 0
    assert first.out.startswith("small: int8, ")
    assert first.out.count("\n") == 1
    assert first.err == "perplexity not measured: name a text with --eval FILE\n"
    again = shell(f"llmcli quantize {tiny_gpt2} -o small --eval - < a.txt")
    assert "perplexity " in again.out.splitlines()[1]
    assert "95 % interval" in again.out
    assert "protocol sliding:64/32" in again.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("{model}", 2, "missing option '-o'"),
        ("{model} -o {model}", 2, "is the model that the new one is made from"),
        ("{model} -m {model} -o x", 2, "expected one model, got MODEL and --model"),
        ("{model} -o a.txt", 2, "expected a directory for the model, got the file 'a.txt'"),
        ("{model} -o x --to int2", 2, "int2"),
        ("{model} -o x --eval nowhere.txt", 5, "'nowhere.txt', which does not exist"),
        ("{model} -o x --calibrate a.txt", 2, "expected at least 2,048 tokens of text to calibrate with, got "),
        ("{model} -o x --calibrate - --eval -", 2, "'-' (stdin) once"),
        ("{model} -o x --calibrate nowhere.txt", 5, "'nowhere.txt', which does not exist"),
        ("{model} -o x --eval a.txt -c 65", 2, "expected at most 64 tokens"),
        ("nowhere/at/all -o x", 5, "nowhere/at/all"),
        ("{model} -o a.txt/x", 2, "a.txt/x"),
        ("zeros -o x", 5, "h.0.attn.c_proj.weight: expected weights to quantise, got only zeros"),
        ("done -o x", 2, "done is quantised to int8, and plain weights are needed"),
    ],
)
def test_refusals(shell: Shell, tiny_gpt2: Path, tmp_path: Path, arguments: str, code: int, words: str) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    if arguments.startswith(("zeros", "done")):
        damaged(tiny_gpt2, tmp_path)
    result = shell(f"llmcli quantize {arguments.format(model=tiny_gpt2)}")
    assert (result.code, result.out) == (code, "")
    assert words.lower() in result.err.lower()
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".*"))


def damaged(tiny_gpt2: Path, tmp_path: Path) -> None:
    """Write `zeros`, a model with a matrix of zeros, and `done`, one that is quantised."""
    import shutil

    from llmcli import loading, quantization
    from llmcli.checkpoints import safetensors

    quantization.save(loading.load(tiny_gpt2, pack=False), "int8", tmp_path / "done")
    shutil.copytree(tiny_gpt2, tmp_path / "zeros")
    weights = dict(safetensors.open(tiny_gpt2))
    weights["transformer.h.0.attn.c_proj.weight"] = 0 * weights["transformer.h.0.attn.c_proj.weight"]
    safetensors.save(tmp_path / "zeros" / "model.safetensors", weights)
