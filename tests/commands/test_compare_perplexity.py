"""`llmcli compare-perplexity` as a gate: 0, 3 and 4, and what it refuses to compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result
from tests.tiny import TEXT, write_checkpoint, write_tokenizer

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def models(tiny_gpt2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "a.txt").write_text(TEXT * 4)
    (tmp_path / "b.txt").write_text("The boy said: we go.")
    (tmp_path / "short.txt").write_text("The sea")
    shutil.copytree(tiny_gpt2, tmp_path / "old")
    shutil.copytree(tiny_gpt2, tmp_path / "new")
    weights = load_file(tmp_path / "new" / "model.safetensors")
    weights["transformer.ln_f.weight"] *= 1.5  # a random model that is surer of itself is worse
    save_file(weights, tmp_path / "new" / "model.safetensors")


def test_a_gate_in_a_real_shell(shell: Run) -> None:
    result = shell("llmcli compare-perplexity old new --max-increase 0.5% a.txt b.txt | tail -n 1")
    assert (result.code, result.out) == (3, "failed\n")
    assert result.err.startswith("error: the perplexity grew by ")


def test_pass_and_inconclusive(invoke: Run) -> None:
    assert invoke("compare-perplexity old old a.txt --max-increase 0").code == 0
    assert invoke("compare-perplexity new old a.txt --max-increase 0.5%").code == 0
    assert invoke("compare-perplexity old new a.txt b.txt").code == 0
    middle = json.loads(invoke("compare-perplexity old new a.txt --json").out)["increase_pct"]
    result = invoke(f"compare-perplexity old new a.txt --max-increase {middle}%")
    assert result.code == 4
    assert "take more text" in result.err


def test_json_agrees_with_perplexity(invoke: Run) -> None:
    got = json.loads(invoke("compare-perplexity old new a.txt b.txt --kl --json -c 32 --batch-size 3").out)
    for side in ("old", "new"):
        alone = json.loads(invoke(f"perplexity -m {side} -c 32 a.txt b.txt --json").out)
        assert got[f"{side}_ppl"] == pytest.approx(alone["ppl"], rel=1e-7)
        assert got["fingerprint"] == alone["fingerprint"]
    assert (got["schema"], got["verdict"], got["n_documents"]) == ("llmcli/compare-perplexity/1", None, 2)
    assert got["kl"]["mean"] > 0
    assert 0 < got["top1_agreement"] <= 1
    worst = got["worst_tokens"][0]
    text = (TEXT * 4 if worst["name"] == "a.txt" else "The boy said: we go.").encode()
    assert text[worst["byte_offset"] :].startswith(worst["token"].encode())
    assert "KL(old, new)" in invoke("compare-perplexity old new a.txt --kl").out
    bits = json.loads(invoke("compare-perplexity old old a.txt --new-dtype bfloat16 --json").out)
    assert 0 < abs(bits["increase_pct"]) < 2
    narrow = json.loads(invoke("compare-perplexity old old a.txt --new-quantize int4 --json").out)
    assert abs(narrow["increase_pct"]) > abs(bits["increase_pct"])


def test_nothing_is_worse_in_the_same_model(invoke: Run) -> None:
    got = json.loads(invoke("compare-perplexity old old a.txt b.txt --json").out)
    assert (got["increase_pct"], got["worst_documents"], got["worst_tokens"]) == (0, [], [])


@pytest.fixture
def stored(invoke: Run) -> Run:
    """`stored("old", "a.txt b.txt")` leaves old.json."""
    return lambda model, files, flags="-c 32", name=None: invoke(
        f"perplexity -m {model} {flags} {files} --json -o {name or model}.json"
    )


@pytest.mark.parametrize("files", ["a.txt b.txt", "short.txt", " ".join(["a.txt b.txt"] * 15)])
def test_stored_results_compare_as_live_ones(invoke: Run, stored: Run, files: str) -> None:
    assert [stored(model, files).code for model in ("old", "new")] == [0, 0]
    from_files = invoke("compare-perplexity --from-files old.json new.json --max-increase 0.5% --json")
    live = invoke(f"compare-perplexity old new -c 32 {files} --max-increase 0.5% --json")
    assert from_files.code == live.code == (4 if files == "short.txt" else 3)
    got, expected = json.loads(from_files.out), json.loads(live.out)
    for name in ("old_ppl", "new_ppl", "increase_pct", "documents_improved"):
        assert got[name] == pytest.approx(expected[name], rel=1e-9), name
    ends = [[document["ci"][end] for end in ("low", "high")] for document in (got, expected)]
    assert ends[0] == (ends[1] if None in ends[1] else pytest.approx(ends[1], rel=1e-6))
    for name in ("n_tokens", "n_documents", "fingerprint", "protocol", "verdict"):
        assert got[name] == expected[name], name
    assert [row["name"] for row in got["worst_documents"]] == [row["name"] for row in expected["worst_documents"]]


def test_stored_results_in_a_real_shell(shell: Run, tiny_gpt2: Path) -> None:
    result = shell(
        "llmcli perplexity -m old a.txt --json >old.json && llmcli perplexity -m new a.txt --json >new.json &&"
        "llmcli compare-perplexity --from-files old.json new.json --max-increase 0.5% | tail -n 1"
    )
    assert (result.code, result.out) == (3, "failed\n")


@pytest.mark.parametrize(
    ("files", "flags", "words"),
    [
        ("a.txt", "-c 16", "name sliding:32/16 and sliding:16/8"),
        ("a.txt", "--protocol hf:32/16", "first_token context only and of each window: context only"),
        ("a.txt b.txt", "-c 32", "1 documents and 2"),
        ("short.txt", "-c 32", "a.txt of 400 bytes and of "),
        ("same_size.txt", "-c 32", "other contents or tokens of the same number"),
    ],
)
def test_other_fingerprints_are_refused(
    invoke: Run, stored: Run, tmp_path: Path, files: str, flags: str, words: str
) -> None:
    (tmp_path / "a.txt").write_text("abcd" * 100 + "\n")
    stored("old", "a.txt")
    if files == "short.txt":  # another file under the same name
        (tmp_path / "a.txt").write_text("abcd" * 50)
    elif files == "same_size.txt":
        (tmp_path / "a.txt").write_text("abcd" * 99 + "bcda" + "\n")
    stored("new", "a.txt b.txt" if "b.txt" in files else "a.txt", flags)
    result = invoke("compare-perplexity --from-files old.json new.json")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "expected two results with one fingerprint, got " in result.err
    assert words in result.err


def test_the_fingerprint_covers_the_tokenizer(invoke: Run, stored: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_checkpoint(tmp_path / "other")
    write_tokenizer(tmp_path / "other", 300)
    stored("old", "a.txt")
    stored("other", "a.txt")
    assert "a.txt of " in invoke("compare-perplexity --from-files old.json other.json").err
    prints = [json.loads((tmp_path / name).read_text())["fingerprint"] for name in ("old.json", "other.json")]
    assert prints[0] != prints[1]
    # Words do not depend on tokens, but the intervals of a comparison do.
    stored("old", "a.txt", "--protocol lm-eval")
    stored("other", "a.txt", "--protocol lm-eval")
    prints = [json.loads((tmp_path / name).read_text())["fingerprint"] for name in ("old.json", "other.json")]
    assert prints[0] == prints[1]
    result = invoke("compare-perplexity --from-files old.json other.json")
    assert (result.code, " tokens and of " in result.err) == (2, True)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda document: document.pop("blocks"), 5, "measure it again"),
        (lambda document: document["blocks"]["nll"].pop(), 5, "measure it again"),
        (lambda document: document["blocks"]["n_tokens"].__setitem__(0, 10**400), 5, "measure it again"),
        (lambda document: document.update(protocol=[["x"]]), 5, "measure it again"),
        (lambda document: document["documents"][0].pop("n_bytes"), 5, "measure it again"),
        (lambda document: document.update(schema=["x"]), 5, "got ['x']"),
        (lambda document: document["blocks"]["nll"].__setitem__(0, 7e9), 5, "measure it again"),
        (lambda document: document.update(nll_per_token=None), 5, "measure it again"),
        (lambda document: document["documents"][0].update(nll_per_token="x"), 5, "measure it again"),
        (lambda document: document.update(error="broken"), 5, "expected a perplexity, got none: broken"),
        (lambda document: document.update(schema="llmcli/perplexity/0"), 5, "got 'llmcli/perplexity/0'"),
        (lambda document: document.update(schema="llmcli/perplexity-all/1"), 5, "under one protocol"),
        (lambda document: document.update(fingerprint="0"), 2, "other contents"),
    ],
)
def test_damaged_results(
    invoke: Run, stored: Run, tmp_path: Path, change: Callable[[Any], Any], code: int, words: str
) -> None:
    stored("old", "a.txt")
    document = json.loads((tmp_path / "old.json").read_text())
    change(document)
    (tmp_path / "new.json").write_text(json.dumps(document))
    result = invoke("compare-perplexity --from-files old.json new.json")
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1)
    assert words in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("a.txt old.json", 5, "a.txt: expected a document of 'llmcli perplexity --json'"),
        ("nowhere old.json", 5, "nowhere"),
        ("old.json old.json a.txt", 2, "expected two files"),
        ("old.json old.json --kl", 2, "--kl says how to score"),
        ("old.json old.json -c 16", 2, "--ctx-size says how to score"),
        ("old.json old.json --max-increase 0 --json -o x.json --seed 3 -q", 0, ""),
    ],
)
def test_flags_of_stored_results(invoke: Run, stored: Run, arguments: str, code: int, words: str) -> None:
    stored("old", "a.txt")
    result = invoke(f"compare-perplexity --from-files {arguments}")
    assert result.code == code
    assert words in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("old", 2, "missing argument 'NEW'"),
        ("old new", 2, "expected at least two tokens, got 0"),
        ("old other a.txt", 2, "expected two models with one tokenizer"),
        ("old nowhere/x a.txt", 5, "nowhere/x"),
        ("old new a.txt --protocol all", 2, "expected one of sliding"),
        ("old new a.txt --max-increase nan%", 2, "finite number"),
        ("old new short.txt --max-increase 1", 4, "which does not decide 1 %"),
    ],
)
def test_what_is_not_compared(invoke: Run, tmp_path: Path, arguments: str, code: int, words: str) -> None:
    if "other" in arguments:
        (tmp_path / "other").mkdir()
        write_checkpoint(tmp_path / "other")
        write_tokenizer(tmp_path / "other", 300)
    result = invoke(f"compare-perplexity {arguments}")
    assert result.code == code
    assert words in result.err
